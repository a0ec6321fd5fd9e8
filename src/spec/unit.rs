//! Names of units of the host's systemd.

/// The unit of a machine of ours.
pub fn service_unit(machine: &str) -> String {
    format!("machinist@{machine}.service")
}

/// The scope of a machine that another program runs, as systemd-machined names it: every byte that a unit's name cannot
/// have, and `-`, is written `\xNN`.
pub fn scope_unit(machine: &str) -> String {
    let mut name = String::from("machine-");
    for (index, byte) in machine.bytes().enumerate() {
        match byte {
            b'.' if index == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(byte)),
            other => name.push_str(&format!("\\x{other:02x}")),
        }
    }
    name.push_str(".scope");
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_named_as_systemd_does() {
        assert_eq!(scope_unit("web"), "machine-web.scope");
        assert_eq!(scope_unit("my-web.1"), "machine-my\\x2dweb.1.scope");
        assert_eq!(scope_unit(".x"), "machine-\\x2ex.scope");
    }
}
