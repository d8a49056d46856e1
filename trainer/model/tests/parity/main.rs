//! anneal-model and anneal-pth do what PyTorch and Pillow do.
//!
//! `tests/parity/run` sets up Python and runs this.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod images;
mod networks;
mod pth;

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    process::Command,
};

use anneal_pth::{DType, Limits, TensorData, Value};

/// A folder that both sides write to.
struct Exchange(tempfile::TempDir);

impl Exchange {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for temporary files"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Gives a value to the other side.
    fn give(&self, value: &Value) {
        let mut file = File::create(self.path("in.pth")).expect("a file");
        anneal_pth::write(&mut file, value).expect("space on the disk");
    }

    /// Has the other side run a command.
    fn ask(&self, command: &str) {
        let Some(python) = std::env::var_os("ANNEAL_PARITY_PYTHON") else {
            panic!("ANNEAL_PARITY_PYTHON is not set; run tests/parity/run or `make test`, which set PyTorch up");
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/reference.py");
        // Python finds its own libtorch; ours has fewer libraries.
        let output =
            Command::new(python).arg(script).arg(command).arg(self.0.path()).env_remove("LD_LIBRARY_PATH").output();
        let output = output.expect("the interpreter that ANNEAL_PARITY_PYTHON names");
        assert!(output.status.success(), "reference.py {command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the other side answered.
    fn answer(&self) -> Value {
        read(&self.path("out.pth"))
    }
}

fn read(path: &Path) -> Value {
    let file = BufReader::new(File::open(path).expect("a file of the other side"));
    anneal_pth::read(file, &Limits::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The numbers of a float32 tensor.
fn floats(tensor: &TensorData) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
}

/// The largest difference between two float32 tensors of one shape.
fn distance(ours: &TensorData, theirs: &TensorData) -> f32 {
    assert_eq!(ours.shape(), theirs.shape());
    floats(ours).iter().zip(floats(theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
