//! Compiles the C++ files over libtorch: what reaches its fused convolutions, and a pooling of our own.

use std::{env, path::PathBuf};

fn main() {
    for file in ["src/fused.cc", "src/guarded.h", "src/pool.cc"] {
        println!("cargo::rerun-if-changed={file}");
    }
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // The same variables as torch-sys, which has found or refused them before this runs.
    let dir = |own: &str, below: &str| {
        env::var_os(own).or_else(|| env::var_os("LIBTORCH")).map(|root| PathBuf::from(root).join(below))
    };
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++20").warnings(false);
    if let Some(include) = dir("LIBTORCH_INCLUDE", "include") {
        compiler.include(include);
    }
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    compiler.define("_GLIBCXX_USE_CXX11_ABI", &*abi);
    // Thin glue: what it calls is optimised already.
    compiler.clone().file("src/fused.cc").opt_level(1).debug(false).compile("anneal_fused");
    // Loops over millions of numbers, in libtorch's threads, which are OpenMP's. Products are rounded before they are added
    // to something, since not every processor can do without.
    compiler
        .file("src/pool.cc")
        .flag("-fopenmp")
        .flag("-ffp-contract=off")
        .opt_level(3)
        .debug(false)
        .compile("anneal_pool");
    if let Some(lib) = dir("LIBTORCH_LIB", "lib") {
        println!("cargo::rustc-link-search=native={}", lib.display());
    }
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    println!("cargo::rustc-link-lib=gomp");
}
