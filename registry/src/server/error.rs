//! [`ApiError`]: a refusal as the protocol words it (distribution-spec, *Error Codes*). What the store says is
//! translated here, and nothing of the machine (paths, SQL) leaves with it.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use rimg_formats::digest::{Digest, DigestError};
use rimg_formats::manifest::ManifestError;
use rimg_formats::reference::ReferenceError;
use rimg_formats::store::StoreError;
use serde_json::{Value, json};

use super::limits::{MISSING_SHOWN_MAX, RETRY_AFTER_SECONDS};

/// The specification's error codes, and three of our own where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    TooManyRequests,
    Unauthorized,
    Unsupported,
    /// Ours: `If-Match` or `If-None-Match` did not hold.
    PreconditionFailed,
    /// Ours: a tag, a number or a range that breaks its grammar.
    ParameterInvalid,
    /// Ours: the server's fault.
    Internal,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::Denied => "DENIED",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Unsupported => "UNSUPPORTED",
            Code::PreconditionFailed => "PRECONDITION_FAILED",
            Code::ParameterInvalid => "PARAMETER_INVALID",
            Code::Internal => "UNKNOWN",
        }
    }
}

/// A refused request: what the client is told, and what only the operator is.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    code: Code,
    message: String,
    /// Messages with their details, in place of the message; for several of a kind.
    entries: Vec<(String, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The cause, for the operator's eyes alone.
    pub(super) cause: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError { status, code, message, entries: Vec::new(), headers: Vec::new(), cause: None }
    }

    /// 400 with `code`.
    pub(super) fn bad_request(code: Code, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404 with `code`.
    pub(super) fn not_found(code: Code, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 429: a limit on work at once, not on the request itself.
    pub(super) fn too_many(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, message)
            .with_header(axum::http::header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS))
    }

    /// 500: the client is told nothing but that; the operator is told `cause`.
    pub(super) fn internal(cause: impl std::fmt::Display) -> ApiError {
        let mut error = ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Internal,
            "the registry failed; its log says why",
        );
        error.cause = Some(cause.to_string());
        error
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// One entry of `errors` for each of `entries`, as clients expect of missing blobs. Most print messages alone, so
    /// those say it all.
    pub(super) fn with_entries(mut self, entries: Vec<(String, Value)>) -> ApiError {
        self.entries = entries;
        self
    }

    /// The JSON body.
    pub(super) fn body(&self) -> Vec<u8> {
        let code = self.code.name();
        let errors: Vec<Value> = match self.entries.as_slice() {
            [] => vec![json!({"code": code, "message": self.message})],
            entries => entries
                .iter()
                .map(|(message, detail)| json!({"code": code, "message": message, "detail": detail}))
                .collect(),
        };
        json!({ "errors": errors }).to_string().into_bytes()
    }
}

/// What only the operator is told of a refusal, on its way there beside the answer.
#[derive(Clone, Debug)]
pub(super) struct Cause(pub(super) String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body()).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(Cause(cause));
        }
        response
    }
}

impl From<DigestError> for ApiError {
    fn from(error: DigestError) -> ApiError {
        ApiError::bad_request(Code::DigestInvalid, error.to_string())
    }
}

impl From<ReferenceError> for ApiError {
    fn from(error: ReferenceError) -> ApiError {
        let code = match &error {
            ReferenceError::Tag(_) => Code::ParameterInvalid,
            ReferenceError::Digest(_) => Code::DigestInvalid,
            _ => Code::NameInvalid,
        };
        ApiError::bad_request(code, error.to_string())
    }
}

impl From<ManifestError> for ApiError {
    fn from(error: ManifestError) -> ApiError {
        match error {
            ManifestError::TooLarge(_) => {
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, error.to_string())
            }
            _ => ApiError::bad_request(Code::ManifestInvalid, error.to_string()),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let message = error.to_string();
        match error {
            StoreError::DigestMismatch { .. } => ApiError::bad_request(Code::DigestInvalid, message),
            StoreError::SizeMismatch { .. } => ApiError::bad_request(Code::SizeInvalid, message),
            StoreError::BlobUnknown(_) => ApiError::not_found(Code::BlobUnknown, message),
            // To a client a damaged blob is one that is not there: it pushes it again, and that heals it.
            StoreError::Damaged { digest, .. } => {
                let mut refused =
                    ApiError::not_found(Code::BlobUnknown, format!("blob {digest} is not in the store"));
                refused.cause = Some(message);
                refused
            }
            StoreError::ContentMissing { missing, .. } => {
                let entry = |digest: &Digest| {
                    let message = format!(
                        "the manifest refers to {digest}, which this repository does not have; push it first"
                    );
                    (message, json!({ "digest": digest.to_string() }))
                };
                let entries = missing.iter().take(MISSING_SHOWN_MAX).map(entry).collect();
                ApiError::bad_request(Code::ManifestBlobUnknown, "").with_entries(entries)
            }
            StoreError::ManifestUnknown { .. } | StoreError::TagUnknown { .. } => {
                ApiError::not_found(Code::ManifestUnknown, message)
            }
            StoreError::ManifestInvalid(error) => error.into(),
            StoreError::UploadUnknown(_) => ApiError::not_found(Code::BlobUploadUnknown, message),
            StoreError::UploadBusy(_) => {
                ApiError::new(StatusCode::CONFLICT, Code::BlobUploadInvalid, message)
                    .with_header(axum::http::header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            StoreError::PreconditionFailed { .. } => {
                ApiError::new(StatusCode::PRECONDITION_FAILED, Code::PreconditionFailed, message)
            }
            StoreError::PartOfTag { .. } => ApiError::new(StatusCode::CONFLICT, Code::Denied, message),
            StoreError::Full { .. } => {
                let mut refused = ApiError::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    Code::Denied,
                    "the registry has no space left",
                );
                refused.cause = Some(message);
                refused
            }
            _ => ApiError::internal(message),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn internal_failures_tell_a_client_nothing_about_the_machine() {
        let error = ApiError::from(StoreError::Io {
            action: "open",
            path: "/secret/place".into(),
            source: std::io::Error::other("boom"),
        });
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!String::from_utf8(error.body()).unwrap().contains("secret"));
        assert!(error.cause.unwrap().contains("/secret/place"));
    }

    #[test]
    fn every_missing_blob_has_an_entry() {
        let digest = Digest::sha256(b"x");
        let error =
            ApiError::from(StoreError::ContentMissing { manifest: digest, missing: vec![digest, digest] });
        let body: Value = serde_json::from_slice(&error.body()).unwrap();
        assert_eq!(body["errors"].as_array().unwrap().len(), 2);
        assert_eq!(body["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
        assert_eq!(body["errors"][0]["detail"]["digest"], digest.to_string());
        assert!(body["errors"][1]["message"].as_str().unwrap().contains(&digest.to_string()));
        let many =
            ApiError::from(StoreError::ContentMissing { manifest: digest, missing: vec![digest; 10_000] });
        assert!(many.body().len() < 64 * 1024);
    }
}
