//! What this process may use of its machine: the limits of its cgroups, version 1 and 2.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

use anneal_api::{checkpoint::Machine, hyperparameters::Precision};
use anneal_model::sha256_file;

/// What x86's vector extensions begin with.
const VECTOR_EXTENSIONS: [&str; 5] = ["sse4", "avx", "fma", "f16c", "amx"];
/// Variables by which libtorch, oneDNN and MKL are told to use fewer extensions, or numbers of fewer bits.
const VARIABLES: [&str; 6] = [
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
];

/// Processor time and memory that a process may use; `None` where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Processors, in fractions.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
}

/// What results depend on here.
pub fn identity(threads: usize, precision: Precision) -> Machine {
    let cpu = processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let chosen = VARIABLES.iter().filter_map(|name| Some(format!(" {name}={}", env::var(name).ok()?)));
    Machine {
        program: program(),
        cpu: cpu + &chosen.collect::<String>(),
        threads,
        dtype: match precision {
            Precision::Float32 => "float32",
            Precision::BFloat16 => "bfloat16",
        }
        .to_owned(),
        layout: "channels_last".to_owned(),
        libtorch: std::env!("LIBTORCH_VERSION").to_owned(),
    }
}

/// Version and digest of this program. The version alone would not tell one build from another, nor an image of the user's.
fn program() -> String {
    let digest = sha256_file("/proc/self/exe").map(|file| format!(" sha256:{}", file.sha256)).unwrap_or_default();
    format!("{}{digest}", std::env!("CARGO_PKG_VERSION"))
}

/// Model and vector extensions of the first processor. Libraries choose their kernels by the extensions, and how they
/// cut the work into pieces by the caches, which the model tells.
fn processor(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let fields = first.lines().filter_map(|line| line.split_once(':').map(|(name, value)| (name.trim(), value.trim())));
    let words = fields.filter_map(|(name, value)| match name {
        "vendor_id" | "cpu family" | "model" | "CPU implementer" | "CPU part" | "Features" => Some(value.to_owned()),
        "flags" => {
            let vector = |flag: &&str| VECTOR_EXTENSIONS.iter().any(|prefix| flag.starts_with(prefix));
            Some(value.split_whitespace().filter(vector).collect::<Vec<_>>().join(" "))
        }
        _ => None,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Threads that make use of the processors this process may use: the quota rounded up, or all processors.
pub fn threads() -> usize {
    let all = thread::available_parallelism().map_or(1, usize::from);
    limits(Path::new("/sys/fs/cgroup"), Path::new("/proc")).cpus.map_or(all, rounded_up)
}

/// Processors that this process may use, in fractions.
pub fn cpus() -> f64 {
    let all = thread::available_parallelism().map_or(1, usize::from);
    #[expect(clippy::cast_precision_loss, reason = "a count of processors")]
    limits(Path::new("/sys/fs/cgroup"), Path::new("/proc")).cpus.unwrap_or(all as f64)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of processors")]
fn rounded_up(cpus: f64) -> usize {
    (cpus.ceil() as usize).max(1)
}

/// Bytes of memory that this process may use, if the system says so.
pub fn memory() -> Option<u64> {
    let limit = limits(Path::new("/sys/fs/cgroup"), Path::new("/proc")).memory;
    limit.into_iter().chain(total_memory(Path::new("/proc"))).min()
}

fn total_memory(proc: &Path) -> Option<u64> {
    let text = fs::read_to_string(proc.join("meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The tightest limits of the process's cgroup and of those above it.
fn limits(cgroup: &Path, proc: &Path) -> Limits {
    let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let of = |root: PathBuf, controller: &str| above(&root, own_path(&own, controller));
    let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();

    let unified = of(cgroup.to_owned(), "");
    let (cpu, memory) = (of(cgroup.join("cpu"), "cpu"), of(cgroup.join("memory"), "memory"));
    let old_quota = |folder: &PathBuf| {
        quota(&format!("{} {}", read(folder, "cpu.cfs_quota_us")?.trim(), read(folder, "cpu.cfs_period_us")?))
    };
    let cpus =
        unified.iter().filter_map(|folder| quota(&read(folder, "cpu.max")?)).chain(cpu.iter().filter_map(old_quota));
    let new_memory = unified.iter().filter_map(|folder| number(read(folder, "memory.max")?));
    let memory = new_memory.chain(memory.iter().filter_map(|folder| number(read(folder, "memory.limit_in_bytes")?)));
    Limits { cpus: cpus.min_by(f64::total_cmp), memory: memory.min() }
}

/// The path of the process in a hierarchy: `0::/path` in version 2, `4:cpu,cpuacct:/path` in version 1.
fn own_path<'a>(own: &'a str, controller: &str) -> &'a str {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(controllers, _)| controllers.split(',').any(|name| name == controller))
        .map_or("", |(_, path)| path.trim_start_matches('/'))
}

/// The folder of a cgroup and those above it. In a container the path may not exist below its own root.
fn above(root: &Path, path: &str) -> Vec<PathBuf> {
    root.join(path).ancestors().filter(|folder| folder.starts_with(root)).map(Path::to_owned).collect()
}

/// Processors from `QUOTA PERIOD`; `max` and -1 are no limit.
fn quota(text: &str) -> Option<f64> {
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let (quota, period) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, content).expect("a file");
        }
        root
    }

    fn read(files: &[(&str, &str)]) -> Limits {
        let root = system(files);
        limits(&root.path().join("cgroup"), &root.path().join("proc"))
    }

    #[test]
    fn version_2_takes_the_tightest_limit_on_the_way_up() {
        let limits = read(&[
            ("proc/self/cgroup", "0::/kubepods/pod1/main\n"),
            ("cgroup/kubepods/pod1/cpu.max", "150000 100000\n"),
            ("cgroup/kubepods/pod1/main/cpu.max", "max 100000\n"),
            ("cgroup/kubepods/pod1/main/memory.max", "1073741824\n"),
            ("cgroup/kubepods/memory.max", "max\n"),
        ]);
        assert_eq!(limits, Limits { cpus: Some(1.5), memory: Some(1 << 30) });
        assert_eq!(rounded_up(1.5), 2);
        assert_eq!(rounded_up(0.1), 1);
    }

    #[test]
    fn version_2_in_a_container_shows_its_own_group_as_the_root() {
        let limits = read(&[("proc/self/cgroup", "0::/../other\n"), ("cgroup/cpu.max", "50000 100000")]);
        assert_eq!(limits.cpus, Some(0.5));
    }

    #[test]
    fn version_1_has_a_file_for_quota_and_period() {
        let limits = read(&[
            ("proc/self/cgroup", "4:cpu,cpuacct:/job\n2:memory:/job\n"),
            ("cgroup/cpu/job/cpu.cfs_quota_us", "400000\n"),
            ("cgroup/cpu/job/cpu.cfs_period_us", "100000\n"),
            ("cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("cgroup/memory/job/memory.limit_in_bytes", "2147483648\n"),
        ]);
        assert_eq!(limits, Limits { cpus: Some(4.0), memory: Some(2 << 30) });
    }

    #[test]
    fn a_processor_is_known_by_its_model_and_its_vector_extensions() {
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\ncpu MHz\t: 2000.1\n\
                   flags\t\t: fpu sse4_2 avx2 rdrand amx_tile\n\nprocessor\t: 1\nvendor_id\t: other\n";
        assert_eq!(processor(x86), "GenuineIntel 6 143 sse4_2 avx2 amx_tile");
        assert_eq!(processor("CPU implementer : 0x41\nFeatures : fp asimd sve\n"), "0x41 fp asimd sve");
        assert_eq!(processor(""), "");
    }

    #[test]
    fn without_cgroups_there_is_no_limit() {
        assert_eq!(read(&[]), Limits::default());
    }
}
