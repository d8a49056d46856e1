//! Passes the version of libtorch on, which every checkpoint names.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let version = env::var_os("LIBTORCH").and_then(|dir| {
        let path = Path::new(&dir).join("build-version");
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read_to_string(path).ok()
    });
    // Debian and others that package libtorch leave the file out.
    let version = version.as_deref().map_or("unknown", str::trim);
    println!("cargo::rustc-env=LIBTORCH_VERSION={version}");
}
