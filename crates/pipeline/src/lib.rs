//! The pipeline of foldgate: requests, gates, calculator, verdicts, commit.
