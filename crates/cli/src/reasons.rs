//! Reasons and how often each was met, for people.

use std::{collections::BTreeMap, fmt};

/// Reasons with their counts, in brackets; nothing where there is none.
pub(crate) struct Reasons<'a>(pub(crate) &'a BTreeMap<&'static str, u64>);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (reason, count)) in self.0.iter().enumerate() {
            let before = if position == 0 { " (" } else { ", " };
            write!(f, "{before}{reason}: {count}")?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}
