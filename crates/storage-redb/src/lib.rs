//! The redb backend of foldgate.
