//! Colours of a piece of text.

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Title,
    Head,
    /// In the head, the column that machines are in the order of.
    Sorted,
    Good,
    Warn,
    Bad,
    Cool,
}

impl Paint {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Title => "1",
            Self::Head => "7",
            Self::Sorted => "1;7;36",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "1;31",
            Self::Cool => "36",
        }
    }
}
