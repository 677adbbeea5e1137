//! The MDBX backend of foldgate.
