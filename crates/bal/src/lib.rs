//! EIP-7928 block access lists: decoding, validation, final values.
