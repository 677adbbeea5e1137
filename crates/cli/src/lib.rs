//! The command-line tool of foldgate.
