//! Comma-separated fields of one value, as docker's flags take them: Go's `encoding/csv`, one record.

/// The fields of `text`. A field between double quotes may hold commas, and a double quote as `""`.
pub(super) fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted).ok_or_else(|| {
                format!("`{text}`: a double quote at a field's beginning is closed at its end, such as `\"dest=a,b\"`")
            })?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                if field.contains('"') {
                    return Err(format!(
                        "`{text}`: double quotes stand around a whole field, such as `\"dest=a,b\"`"
                    ));
                }
                (field.to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// The field behind an opening quote, and what follows its closing one: nothing, or a comma.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return (rest.is_empty() || rest.starts_with(',')).then_some((field, rest)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_gos() {
        let table: [(&str, &[&str]); 6] = [
            ("a", &["a"]),
            ("a=b,c", &["a=b", "c"]),
            ("a,,", &["a", "", ""]),
            ("\"dest=a,b\",type=tar", &["dest=a,b", "type=tar"]),
            ("\"a\"\"b\"", &["a\"b"]),
            ("x,\"\"", &["x", ""]),
        ];
        for (text, expected) in table {
            assert_eq!(fields(text).unwrap(), expected, "{text}");
        }
        for text in ["\"a", "a\"b", "\"a\"b", "dest=\"a,b\""] {
            assert!(fields(text).unwrap_err().contains("double quote"), "{text}");
        }
    }
}
