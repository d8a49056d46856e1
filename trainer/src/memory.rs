//! Where the memory of tensors comes from.
//!
//! By default each large tensor is asked of the system, which fills its pages with zeros one by one, and given back; and
//! the C library, told to keep them, breaks what it keeps into pieces that fit nothing. jemalloc keeps the pages that a
//! step has left for the next one.
#![allow(unsafe_code, reason = "jemalloc reads its options from a symbol")]

use std::{
    ffi::{CStr, c_char},
    ptr::null_mut,
};

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Options of jemalloc, which reads them before `main`; `MALLOC_CONF` of the environment comes after them. One arena, for
/// tensors of all sizes too, because few threads ask for large ones, and each arena keeps pages of its own; for ever,
/// because the next step wants them back.
// SAFETY: it is the symbol, and the type, that jemalloc documents for this: a pointer to a C string, or null.
#[unsafe(export_name = "malloc_conf")]
static OPTIONS: Option<&'static c_char> =
    Some(first(c"narenas:1,oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1"));

const fn first(text: &'static CStr) -> &'static c_char {
    // SAFETY: a C string has at least its end.
    unsafe { &*text.as_ptr() }
}

/// Gives back what has been kept, where other work than steps has been done: what it leaves would not fit their tensors.
pub fn give_back() {
    // SAFETY: this command takes and gives no value. `arena.4096` stands for all arenas.
    let failed =
        unsafe { tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    debug_assert_eq!(failed, 0, "jemalloc knows this command");
}

#[cfg(test)]
mod tests {
    use std::{ffi::c_uint, ptr::null_mut};

    #[test]
    fn the_allocator_has_our_options() {
        let (mut arenas, mut size): (c_uint, _) = (0, size_of::<c_uint>());
        // SAFETY: mallctl writes as many bytes as it is told there are.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(c"opt.narenas".as_ptr(), (&raw mut arenas).cast(), &raw mut size, null_mut(), 0)
        };
        assert_eq!((failed, arenas), (0, 1));
    }
}
