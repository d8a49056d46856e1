//! Where the operator's memory comes from. A burst of ten thousand runs passes through it in many small pieces, and what is kept of
//! them when they have ended lies between pieces that are free again: glibc keeps the pages of both, jemalloc gives back those of
//! the free ones.
#![allow(unsafe_code, reason = "jemalloc reads its options from a symbol")]

use std::ffi::{CStr, c_char};

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Options of jemalloc, which reads them before `main`; `MALLOC_CONF` of the environment comes after them. One arena for the two
/// threads of the runtime, because each keeps pages of its own; free pages are given back after a second, by a thread that does
/// it also where nothing else happens.
// SAFETY: it is the symbol, and the type, that jemalloc documents for this: a pointer to a C string, or null.
#[unsafe(export_name = "malloc_conf")]
static OPTIONS: Option<&'static c_char> =
    Some(first(c"narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true"));

const fn first(text: &'static CStr) -> &'static c_char {
    // SAFETY: a C string has at least its end.
    unsafe { &*text.as_ptr() }
}
