//! foldgate.
