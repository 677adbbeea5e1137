//! Real execution of whole blocks on revm, behind the executor's side of the pipeline.
