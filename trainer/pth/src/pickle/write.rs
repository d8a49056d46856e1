//! Writes a value as a pickle.

use super::op;
use crate::value::{DType, Dict, TensorData, Value};

/// The pickle of a value, and its tensors in the order of the storages that the pickle names `0`, `1`, ….
pub(crate) fn pickle(value: &Value) -> (Vec<u8>, Vec<&TensorData>) {
    let mut writer = Writer { out: vec![op::PROTO, 2], tensors: Vec::new() };
    writer.value(value);
    writer.out.push(op::STOP);
    (writer.out, writer.tensors)
}

struct Writer<'a> {
    out: Vec<u8>,
    tensors: Vec<&'a TensorData>,
}

impl<'a> Writer<'a> {
    fn value(&mut self, value: &'a Value) {
        match value {
            Value::None => self.out.push(op::NONE),
            Value::Bool(value) => self.bool(*value),
            Value::Int(value) => self.int(*value),
            Value::Float(value) => {
                self.out.push(op::BINFLOAT);
                self.out.extend(value.to_be_bytes());
            }
            Value::Str(text) => self.str(text),
            Value::Tuple(items) => self.tuple(|w| items.iter().for_each(|item| w.value(item))),
            Value::List(items) => {
                self.out.extend([op::EMPTY_LIST, op::MARK]);
                for item in items {
                    self.value(item);
                }
                self.out.push(op::APPENDS);
            }
            Value::Dict(dict) => self.dict(dict),
            Value::Tensor(tensor) => self.tensor(tensor),
        }
    }

    fn bool(&mut self, value: bool) {
        self.out.push(if value { op::NEWTRUE } else { op::NEWFALSE });
    }

    fn int(&mut self, value: i64) {
        if let Ok(small) = u8::try_from(value) {
            self.out.extend([op::BININT1, small]);
        } else if let Ok(medium) = i32::try_from(value) {
            self.out.push(op::BININT);
            self.out.extend(medium.to_le_bytes());
        } else {
            self.out.extend([op::LONG1, 8]);
            self.out.extend(value.to_le_bytes());
        }
    }

    /// A size or an offset, which never exceeds what a slice can hold.
    fn size(&mut self, value: usize) {
        self.int(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// A string. Its length has 32 bits: protocol 2 has no longer strings, and neither have we.
    fn str(&mut self, text: &str) {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.out.push(op::BINUNICODE);
        self.out.extend(len.to_le_bytes());
        self.out.extend(&text.as_bytes()[..len as usize]);
    }

    fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.push(op::MARK);
        items(self);
        self.out.push(op::TUPLE);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.out.push(op::GLOBAL);
        self.out.extend(format!("{module}\n{name}\n").as_bytes());
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.out.extend([op::EMPTY_TUPLE, op::REDUCE]);
    }

    fn dict(&mut self, dict: &'a Dict) {
        if dict.ordered {
            self.empty_ordered_dict();
        } else {
            self.out.push(op::EMPTY_DICT);
        }
        self.out.push(op::MARK);
        for (key, value) in &dict.entries {
            self.value(key);
            self.value(value);
        }
        self.out.push(op::SETITEMS);
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`, as `torch.save` writes it.
    fn tensor(&mut self, tensor: &'a TensorData) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|w| {
            w.storage(tensor.dtype(), tensor.numel());
            w.size(0);
            w.tuple(|w| tensor.shape().iter().for_each(|&n| w.size(n)));
            w.tuple(|w| contiguous_strides(tensor.shape()).into_iter().for_each(|n| w.size(n)));
            w.bool(false);
            w.empty_ordered_dict();
        });
        self.out.push(op::REDUCE);
        self.tensors.push(tensor);
    }

    fn storage(&mut self, dtype: DType, numel: usize) {
        let key = self.tensors.len().to_string();
        self.tuple(|w| {
            w.str("storage");
            w.global("torch", dtype.storage());
            w.str(&key);
            w.str("cpu");
            w.size(numel);
        });
        self.out.push(op::BINPERSID);
    }
}

/// Elements from one index to the next in each dimension of a row-major tensor.
fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides: Vec<usize> = shape
        .iter()
        .rev()
        .scan(1_usize, |step, &n| {
            let stride = *step;
            *step = step.saturating_mul(n.max(1));
            Some(stride)
        })
        .collect();
    strides.reverse();
    strides
}
