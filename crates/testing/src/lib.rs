//! Conformance suite, fixture readers and the independent oracle of foldgate.
