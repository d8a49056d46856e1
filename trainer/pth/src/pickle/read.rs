//! Reads a pickle into a graph of plain values, calling nothing.

use std::{collections::HashMap, rc::Rc};

use super::{PickleError, op};
use crate::{limits::Limits, value::DType};

/// A node of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(usize);

/// What a pickle makes. Containers hold nodes, because a pickle may use one value in many places.
#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict { ordered: bool, entries: Vec<(Id, Id)> },
    Tensor(Rc<Tensor>),
    Storage(Rc<Storage>),
    Global(Global),
}

/// A tensor's place in its storage, in elements.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Rc<Storage>,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// An entry `data/KEY` of the archive.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) dtype: DType,
    pub(crate) key: Rc<str>,
    pub(crate) numel: u64,
}

/// The classes and functions that a pickle may name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(DType),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "Size") => Some(Self::Size),
            ("torch", storage) => DType::ALL.into_iter().find(|dtype| dtype.storage() == storage).map(Self::Storage),
            _ => None,
        }
    }
}

/// A pickle's graph. It may have cycles.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    pub(crate) root: Id,
}

impl Tree {
    pub(crate) fn node(&self, id: Id) -> &Node {
        // Only `parse` makes ids, and it never removes a node.
        self.nodes.get(id.0).unwrap_or(&Node::None)
    }
}

/// Most dimensions of a tensor; PyTorch's own bound is 64.
const MAX_DIMENSIONS: usize = 64;

/// Longest name of a class in a message.
const MAX_NAME: usize = 100;

/// Reads a pickle.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Tree, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        max_nodes: limits.max_values,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Tree { nodes: machine.nodes, root })
}

/// The pickle machine: a stack of values, a stack of marks in it, and a memo.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    max_nodes: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let at = self.at;
            match self.byte()? {
                op::STOP => return self.pop(),
                op::PROTO => {
                    if self.byte()? != 2 {
                        return Err(self.damaged("its protocol is not 2"));
                    }
                }
                op::MARK => self.marks.push(self.stack.len()),
                op::NONE => self.push(Node::None)?,
                op::NEWTRUE => self.push(Node::Bool(true))?,
                op::NEWFALSE => self.push(Node::Bool(false))?,
                op::BININT => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                op::BININT1 => {
                    let value = self.byte()?;
                    self.push(Node::Int(value.into()))?;
                }
                op::BININT2 => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                op::LONG1 => {
                    let value = self.long()?;
                    self.push(Node::Int(value))?;
                }
                op::BINFLOAT => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                op::BINUNICODE => {
                    let len = u32::from_le_bytes(self.array()?);
                    let text = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
                    let text = str::from_utf8(text).map_err(|_| self.damaged("a string is not UTF-8"))?;
                    self.push(Node::Str(text.into()))?;
                }
                op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new()))?,
                op::TUPLE1 => self.tuple(1)?,
                op::TUPLE2 => self.tuple(2)?,
                op::TUPLE3 => self.tuple(3)?,
                op::TUPLE => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                op::EMPTY_LIST => self.push(Node::List(Vec::new()))?,
                op::APPEND => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                op::APPENDS => {
                    let items = self.pop_mark()?;
                    self.extend_list(items)?;
                }
                op::EMPTY_DICT => self.push(Node::Dict { ordered: false, entries: Vec::new() })?,
                op::SETITEM => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.extend_dict(&[key, value])?;
                }
                op::SETITEMS => {
                    let items = self.pop_mark()?;
                    self.extend_dict(&items)?;
                }
                op::GLOBAL => self.global()?,
                op::REDUCE => self.reduce()?,
                op::BUILD => self.build()?,
                op::BINPERSID => self.storage()?,
                op::BINPUT => {
                    let slot = self.byte()?;
                    self.put(slot.into())?;
                }
                op::LONG_BINPUT => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.put(slot)?;
                }
                op::BINGET => {
                    let slot = self.byte()?;
                    self.get(slot.into())?;
                }
                op::LONG_BINGET => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.get(slot)?;
                }
                opcode => return Err(PickleError::Opcode { opcode, at }),
            }
        }
    }

    fn global(&mut self) -> Result<(), PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        let global = Global::named(module, name).ok_or_else(|| {
            let name: String = format!("{module}.{name}").chars().take(MAX_NAME).collect();
            PickleError::Global(format!("{name:?}"))
        })?;
        self.push(Node::Global(global))
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let Node::Tuple(args) = self.node(args) else { return Err(self.damaged("arguments are no tuple")) };
        let Node::Global(callable) = *self.node(callable) else { return Err(self.damaged("a value is called")) };
        match (callable, args.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict { ordered: true, entries: Vec::new() }),
            (
                Global::RebuildTensor,
                &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _],
            ) => {
                let tensor = self.tensor(storage, offset, shape, strides)?;
                self.push(Node::Tensor(Rc::new(tensor)))
            }
            (Global::RebuildParameter, &[tensor, _, _]) if matches!(self.node(tensor), Node::Tensor(_)) => {
                self.stack.push(tensor);
                Ok(())
            }
            (Global::Size, &[sizes]) if matches!(self.node(sizes), Node::Tuple(_)) => {
                self.stack.push(sizes);
                Ok(())
            }
            _ => Err(self.damaged("a call has the wrong arguments")),
        }
    }

    /// Sets attributes. Only an `OrderedDict` has any that are saved: `_metadata`, which tells versions of modules.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        match self.stack.last().map(|&id| self.node(id)) {
            Some(Node::Dict { ordered: true, .. }) => Ok(()),
            _ => Err(self.damaged("attributes are set on a plain value")),
        }
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Tensor, PickleError> {
        let Node::Storage(storage) = self.node(storage) else { return Err(self.damaged("a tensor has no storage")) };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return Err(self.damaged("a tensor's dimensions make no sense"));
        }
        Ok(Tensor { storage: Rc::clone(storage), offset: self.size(offset)?, shape, strides })
    }

    fn storage(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let Node::Tuple(parts) = self.node(id) else { return Err(self.damaged("a storage is no tuple")) };
        let &[tag, class, key, _location, numel] = parts.as_slice() else {
            return Err(self.damaged("a storage has the wrong parts"));
        };
        let storage = match (self.node(tag), self.node(class), self.node(key)) {
            (Node::Str(tag), Node::Global(Global::Storage(dtype)), Node::Str(key)) if &**tag == "storage" => {
                Storage { dtype: *dtype, key: Rc::clone(key), numel: self.size(numel)? }
            }
            _ => return Err(self.damaged("a storage has the wrong parts")),
        };
        self.push(Node::Storage(Rc::new(storage)))
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>, PickleError> {
        match self.node(id) {
            Node::Tuple(items) => items.iter().map(|&item| self.size(item)).collect(),
            _ => Err(self.damaged("a shape is no tuple")),
        }
    }

    fn size(&self, id: Id) -> Result<u64, PickleError> {
        match self.node(id) {
            Node::Int(value) => u64::try_from(*value).map_err(|_| self.damaged("a size is negative")),
            _ => Err(self.damaged("a size is no int")),
        }
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        match self.top()? {
            Node::List(list) => list.extend(items),
            _ => return Err(self.damaged("items are appended to what is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let pairs = items.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(self.damaged("a key has no value"));
        }
        match self.top()? {
            Node::Dict { entries, .. } => entries.extend(pairs.map(|pair| (pair[0], pair[1]))),
            _ => return Err(self.damaged("items are set on what is no dict")),
        }
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Result<(), PickleError> {
        let start = self.stack.len().checked_sub(n).filter(|&start| start >= self.floor());
        let items = self.stack.split_off(start.ok_or_else(|| self.damaged("the stack is empty"))?);
        self.push(Node::Tuple(items))
    }

    fn push(&mut self, node: Node) -> Result<(), PickleError> {
        if self.nodes.len() >= self.max_nodes {
            return Err(PickleError::TooMuch("more values"));
        }
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
        Ok(())
    }

    /// Where the values begin that were pushed since the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(self.damaged("the stack is empty"));
        }
        self.stack.pop().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Node, PickleError> {
        let damaged = self.damaged("the stack is empty");
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.and_then(|id| self.nodes.get_mut(id.0)).ok_or(damaged)
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id.0).unwrap_or(&Node::None)
    }

    fn put(&mut self, slot: u32) -> Result<(), PickleError> {
        let top = *self.stack.last().ok_or_else(|| self.damaged("the stack is empty"))?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), PickleError> {
        let id = *self.memo.get(&slot).ok_or_else(|| self.damaged("a memo is empty"))?;
        self.stack.push(id);
        Ok(())
    }

    /// A two's complement integer of up to 8 bytes, little-endian.
    fn long(&mut self) -> Result<i64, PickleError> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(PickleError::TooMuch("a larger int"));
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..len].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.damaged("it ends too early"))?;
        let line = str::from_utf8(&rest[..len]).map_err(|_| self.damaged("a name is not UTF-8"))?;
        self.at += len + 1;
        Ok(line)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let array = *rest.first_chunk().ok_or_else(|| self.damaged("it ends too early"))?;
        self.at += N;
        Ok(array)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..n).ok_or_else(|| self.damaged("it ends too early"))?;
        self.at += n;
        Ok(taken)
    }

    fn damaged(&self, what: &'static str) -> PickleError {
        PickleError::Damaged { what, at: self.at }
    }
}
