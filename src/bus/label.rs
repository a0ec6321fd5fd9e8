//! Names as labels of object paths, and back (`sd_bus_path_encode(3)`).

/// A name as a label of a path.
pub fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_".into();
    }
    let mut label = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || index > 0 && byte.is_ascii_digit() {
            label.push(char::from(byte));
        } else {
            label.push_str(&format!("_{byte:02x}"));
        }
    }
    label
}

/// The name behind a label; `None` if no name is written so.
pub fn unescape(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'_' {
            let digits = tail.get(..2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_for_names_both_ways() {
        for (name, label) in [(".host", "_2ehost"), ("", "_"), ("9a", "_39a"), ("a9-b", "a9_2db"), ("web", "web")] {
            assert_eq!(escape(name), label);
            assert_eq!(unescape(label).as_deref(), Some(name));
        }
        for label in ["_2", "_zz", "_ff", "a_"] {
            assert_eq!(unescape(label), None, "{label}");
        }
    }
}
