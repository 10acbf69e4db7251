//! The guest that measures: Debian's kernel, and an initial file system with busybox, the modules of its NVDIMM driver,
//! and what is built here of the sources in `boot/peer`.

use super::packages::{Apt, Kernel, Package, last_words, unpack};
use super::unfinished;
use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The modules, each after those that it needs.
const MODULES: [&str; 4] = ["libnvdimm", "nfit", "dax_pmem", "device_dax"];

/// A guest that can be booted.
#[derive(Debug)]
pub struct Guest {
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

impl Guest {
    fn at(directory: &Path) -> Self {
        Self { vmlinuz: directory.join("vmlinuz"), initrd: directory.join("initrd") }
    }

    fn is_whole(&self) -> bool {
        [&self.vmlinuz, &self.initrd].iter().all(|file| file.metadata().is_ok_and(|meta| meta.len() > 0))
    }
}

/// The sources, which the project keeps apart: they are Linux's by licence.
pub fn sources() -> [(&'static str, PathBuf); 5] {
    let place = paths::root().join("boot").join("peer");
    ["module/Kbuild", "module/gupbench.c", "module/gupbench.h", "guest/peerbench.c", "guest/init"]
        .map(|name| (name, place.join(name)))
}

/// The guest of this kernel and these sources: kept from before, or made.
///
/// # Errors
/// One line: a package that cannot be had, or what did not build.
pub fn make(kernel: &Kernel, apt: &Apt, place: &Path, say: &dyn Fn(&str)) -> Result<Guest> {
    let busybox = apt.find("busybox-static")?;
    let kept = place.join(format!("guest-{}-{}", kernel.release, super::machine::hash(&[identity(kernel, &busybox)?])));
    let guest = Guest::at(&kept);
    if guest.is_whole() {
        return Ok(guest);
    }
    if kept.exists() {
        fs::remove_dir_all(&kept).with_context(|| kept.display().to_string())?;
    }
    say(&format!("Linux {}: Debian's packages are fetched, and its guest is built", kernel.release));
    let work = unfinished(place)?;
    let made = build(kernel, &busybox, apt, work.path())?;
    fs::rename(&made, &kept).with_context(|| kept.display().to_string())?;
    ensure!(guest.is_whole(), "{} is not a whole guest", kept.display());
    Ok(guest)
}

/// Everything that the guest is made of.
fn identity(kernel: &Kernel, busybox: &Package) -> Result<String> {
    let packages = kernel.headers.iter().chain([&kernel.image, busybox]);
    let mut identity: String = packages.map(|package| format!("{} {}\n", package.name, package.version)).collect();
    for (_, file) in sources() {
        identity.push_str(&fs::read_to_string(&file).with_context(|| file.display().to_string())?);
    }
    Ok(identity)
}

fn build(kernel: &Kernel, busybox: &Package, apt: &Apt, work: &Path) -> Result<PathBuf> {
    let (tree, root, made) = (work.join("tree"), work.join("root"), work.join("guest"));
    for directory in [&tree, &root.join("bin"), &root.join("modules"), &made] {
        fs::create_dir_all(directory)?;
    }
    for package in kernel.headers.iter().chain([&kernel.image, busybox]) {
        unpack(&apt.fetch(package)?, &tree)?;
    }
    module(kernel, &tree, work)?;
    let mut order = String::new();
    for name in MODULES {
        take_module(&tree.join("lib/modules").join(&kernel.release).join("kernel/drivers"), name, &root)?;
        order.push_str(&format!("{name}.ko\n"));
    }
    fs::copy(work.join("module/gupbench.ko"), root.join("modules/gupbench.ko"))?;
    fs::write(root.join("modules/order"), order + "gupbench.ko\n")?;
    fs::copy(tree.join("bin/busybox"), root.join("bin/busybox")).context("busybox-static has no bin/busybox")?;
    let [_, _, _, program, init] = sources().map(|(_, file)| file);
    fs::copy(init, root.join("init"))?;
    let mut gcc = Command::new("gcc-12");
    gcc.args(["-O2", "-Wall", "-static", "-o"]).arg(root.join("bin/peerbench")).arg("-I").arg(work.join("module"));
    run(gcc.arg(program), "the guest's program does not build")?;
    pack(&root, &tree.join("bin/busybox"), &made.join("initrd"))?;
    let vmlinuz = tree.join("boot").join(format!("vmlinuz-{}", kernel.release));
    fs::copy(&vmlinuz, made.join("vmlinuz")).with_context(|| format!("{} has no kernel", kernel.image.name))?;
    Ok(made)
}

/// Builds the module with the headers in `tree`.
fn module(kernel: &Kernel, tree: &Path, work: &Path) -> Result<()> {
    let (headers, module) = (tree.join("usr/src").join(&kernel.headers[0].name), work.join("module"));
    // The headers name the place where they would be installed.
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile).with_context(|| format!("{} has no Makefile", kernel.headers[0].name))?;
    fs::write(&makefile, text.replace("/usr/src", &tree.join("usr/src").display().to_string()))?;
    fs::create_dir_all(&module)?;
    for (name, file) in sources() {
        if let Some(name) = name.strip_prefix("module/") {
            fs::copy(file, module.join(name))?;
        }
    }
    let mut make = Command::new("make");
    // The description of types for BPF would need one more program (pahole), and nothing here looks at it.
    make.args(["-s", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules", "-C"]).arg(&headers);
    run(make.arg(format!("M={}", module.display())), "the module does not build")
}

/// Takes a module out of the drivers, compressed or not.
fn take_module(drivers: &Path, name: &str, root: &Path) -> Result<()> {
    let target = root.join("modules").join(format!("{name}.ko"));
    let directories = ["nvdimm", "acpi/nfit", "dax"].map(|directory| drivers.join(directory));
    for directory in directories {
        let (plain, packed) = (directory.join(format!("{name}.ko")), directory.join(format!("{name}.ko.xz")));
        if plain.exists() {
            fs::copy(plain, target)?;
            return Ok(());
        }
        if packed.exists() {
            let unpacked = Command::new("xz").arg("-dc").arg(&packed).stdin(Stdio::null()).output()?;
            ensure!(unpacked.status.success(), "{}: {}", packed.display(), last_words(&unpacked));
            fs::write(target, unpacked.stdout)?;
            return Ok(());
        }
    }
    bail!("Debian's kernel has no module {name}")
}

/// Makes the initial file system of what lies in `root`: busybox has the archiver.
fn pack(root: &Path, busybox: &Path, initrd: &Path) -> Result<()> {
    // A directory stands before what is in it.
    let mut names = String::from(".\nbin\nmodules\ninit\n");
    for directory in ["bin", "modules"] {
        for entry in fs::read_dir(root.join(directory))?.flatten() {
            names.push_str(&format!("{directory}/{}\n", entry.file_name().to_string_lossy()));
        }
    }
    for program in ["init", "bin/busybox", "bin/peerbench"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join(program), fs::Permissions::from_mode(0o755))?;
    }
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root).stdin(Stdio::piped()).stdout(fs::File::create(initrd)?);
    let mut child = cpio.stderr(Stdio::piped()).spawn().context("busybox cannot be started")?;
    child.stdin.take().context("a pipe to busybox")?.write_all(names.as_bytes())?;
    let done = child.wait_with_output()?;
    ensure!(done.status.success(), "the guest's file system is not made: {}", last_words(&done));
    Ok(())
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().with_context(|| what.to_string())?;
    ensure!(done.status.success(), "{what}: {}", last_words(&done));
    Ok(())
}
