//! The part of Python's pickle (protocol 2) that `torch.save` uses.
//!
//! Python's `pickletools.py` defines the opcodes, `torch/_weights_only_unpickler.py` of PyTorch the ones that matter.

mod read;
mod write;

pub(crate) use read::{Id, Node, Tensor, Tree, parse};
pub(crate) use write::pickle;

mod op {
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const STOP: u8 = b'.';
    pub(super) const MARK: u8 = b'(';
    pub(super) const NONE: u8 = b'N';
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const TUPLE: u8 = b't';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
}

/// The pickle cannot be read, or asks for what is not allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PickleError {
    /// It names a class or function that is not on the list.
    #[error(
        "the pickle asks for {0}, which is not allowed: only tensors and plain Python values are read; save model.state_dict() and plain values"
    )]
    Global(String),
    /// It uses an opcode that `torch.save` does not.
    #[error(
        "the pickle has opcode {opcode:#04x} at byte {at}, which torch.save does not use; save the file with torch.save and its default pickle protocol"
    )]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where it is.
        at: usize,
    },
    /// It ends too early, or its opcodes make no sense.
    #[error("the pickle is damaged at byte {at} ({what}); copy the file again")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where the reader was.
        at: usize,
    },
    /// It holds more than is allowed.
    #[error("the pickle holds {0} than is allowed; save only model.state_dict() and plain values")]
    TooMuch(&'static str),
}
