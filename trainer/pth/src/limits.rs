//! How much a file may ask for before it is refused.

/// Bounds on what a file may make [`read`](crate::read) allocate. The defaults take any image classifier.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of the zip archive: one a tensor, and a handful more.
    pub max_entries: usize,
    /// Bytes of the pickle, which holds everything but the tensors' numbers.
    pub max_pickle_bytes: usize,
    /// Values that the pickle may make, counting a shared value once for each place that it appears in.
    pub max_values: usize,
    /// Bytes of all strings together, counted likewise.
    pub max_string_bytes: usize,
    /// How deep containers may lie in each other.
    pub max_depth: usize,
    /// Bytes of all tensors together.
    pub max_tensor_bytes: u64,
    /// Bytes of all tensors together, as a multiple of the file's length. Tensors that share numbers, or repeat them by
    /// a stride of zero, take more room in memory than in the file.
    pub max_expansion: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 65_536,
            max_pickle_bytes: 16 << 20,
            max_values: 1 << 20,
            max_string_bytes: 64 << 20,
            max_depth: 32,
            max_tensor_bytes: 4 << 30,
            max_expansion: 8,
        }
    }
}
