//! `FROM oci:./layout[:tag]`: an image in an OCI layout on this machine, brought into the store.

use rimg_formats::store::Image;

use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError};
use crate::plan::{OciLayout, Stage};
use crate::source::Span;

/// Copies the image into the store, unless it is there.
pub(crate) fn import(
    _build: &Build<'_>,
    _stage: &Stage,
    _layout: &OciLayout,
    span: Span,
) -> Result<Image, BuildError> {
    Err(Diagnostic::not_supported(span, "an image in an OCI layout").into())
}
