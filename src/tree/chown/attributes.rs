//! Extended attributes that hold ids, rewritten for other ids. Pure; the layouts are the kernel's.

use crate::spec::ID_RANGE_SIZE;

/// `linux/posix_acl_xattr.h`: a version, then entries of tag, permissions and id, all little endian.
const ACL_VERSION: [u8; 4] = 2_u32.to_le_bytes();
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// `linux/capability.h`: revision and flags, four 32-bit words, and in revision 3 the id of the namespace's
/// root for which the capabilities count; in revision 2 that is the host's.
const CAPS_BITS: usize = 20;
const CAPS_REVISION: u32 = 0xFF00_0000;
const CAPS_OF_HOST: u32 = 0x0200_0000;
const CAPS_OF_NAMESPACE: u32 = 0x0300_0000;

/// The same id in the range that begins at `shift`.
pub(super) fn moved(id: u32, shift: u32) -> u32 {
    shift | (id & (ID_RANGE_SIZE - 1))
}

/// The value of a POSIX ACL attribute with its ids moved; `None` if it has a form we do not know.
pub(super) fn move_acl(acl: &[u8], shift: u32) -> Option<Vec<u8>> {
    let entries = acl.strip_prefix(&ACL_VERSION)?;
    let mut new = ACL_VERSION.to_vec();
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    for [tag0, tag1, perm0, perm1, id @ ..] in entries {
        new.extend([tag0, tag1, perm0, perm1]);
        match u16::from_le_bytes([*tag0, *tag1]) {
            ACL_USER | ACL_GROUP => new.extend(moved(u32::from_le_bytes(*id), shift).to_le_bytes()),
            _ => new.extend(id),
        }
    }
    Some(new)
}

/// The value of `security.capability` for a machine whose root is `shift`; `None` if it has a form we do not
/// know.
///
/// Without its root named, the kernel would ignore a file's capabilities inside the machine.
pub(super) fn move_capabilities(caps: &[u8], shift: u32) -> Option<Vec<u8>> {
    let (bits, root) = caps.split_at_checked(CAPS_BITS)?;
    let magic = u32::from_le_bytes(*bits.first_chunk()?);
    let root = match (magic & CAPS_REVISION, root) {
        (CAPS_OF_HOST, []) => 0,
        (CAPS_OF_NAMESPACE, root) => u32::from_le_bytes(root.try_into().ok()?),
        _ => return None,
    };
    let root = moved(root, shift);
    let revision = if root == 0 { CAPS_OF_HOST } else { CAPS_OF_NAMESPACE };
    let mut new = ((magic & !CAPS_REVISION) | revision).to_le_bytes().to_vec();
    new.extend(&bits[4..]);
    if root != 0 {
        new.extend(root.to_le_bytes());
    }
    Some(new)
}

/// What a change of owner takes from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) mode: u32,
    /// `security.capability`.
    pub(super) capabilities: Option<Vec<u8>>,
}

impl Kept {
    pub(super) fn encode(&self) -> Vec<u8> {
        let capabilities = self.capabilities.as_deref().unwrap_or_default();
        [&self.mode.to_le_bytes(), capabilities].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mode, capabilities) = bytes.split_first_chunk()?;
        let capabilities = (!capabilities.is_empty()).then(|| capabilities.to_vec());
        Some(Self { mode: u32::from_le_bytes(*mode) & 0o7777, capabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(ids: [u32; 2]) -> Vec<u8> {
        let entry = |tag: u16, perm: u16, id: u32| {
            [&tag.to_le_bytes()[..], &perm.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
        };
        let none = u32::MAX;
        let entries = [
            entry(0x01, 6, none),
            entry(0x02, 4, ids[0]),
            entry(0x04, 4, none),
            entry(0x08, 4, ids[1]),
            entry(0x10, 4, none),
            entry(0x20, 0, none),
        ];
        [&[2, 0, 0, 0][..], &entries.concat()].concat()
    }

    #[test]
    fn only_the_ids_of_an_acl_are_moved_and_twice_is_once() {
        let there = move_acl(&acl([1000, 70_000]), 0x9_0000).unwrap();
        assert_eq!(there, acl([0x9_0000 + 1000, 0x9_0000 + 4464]));
        assert_eq!(move_acl(&there, 0x9_0000), Some(there.clone()));
        assert_eq!(move_acl(&there, 0), Some(acl([1000, 4464])));
    }

    #[test]
    fn an_acl_of_another_form_is_not_touched() {
        let good = acl([1, 2]);
        for bad in [&[][..], &[3, 0, 0, 0], &good[..good.len() - 1], &good[..3]] {
            assert_eq!(move_acl(bad, 0), None);
        }
    }

    #[test]
    fn capabilities_name_the_root_they_count_for() {
        let host = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        let machine = [&[1, 0, 0, 3][..], &[7; 16], &[0, 0, 9, 0]].concat();
        assert_eq!(move_capabilities(&host, 0x9_0000), Some(machine.clone()));
        assert_eq!(move_capabilities(&machine, 0x9_0000), Some(machine.clone()));
        assert_eq!(move_capabilities(&machine, 0), Some(host.clone()));
        for bad in [&host[..19], &[], &machine[..23], &[&host[..], &[0]].concat()] {
            assert_eq!(move_capabilities(bad, 0), None);
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        for capabilities in [None, Some(vec![1, 2, 3])] {
            let kept = Kept { mode: 0o4755, capabilities };
            assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }
        assert_eq!(Kept::decode(&[1, 2, 3]), None);
    }
}
