//! Where things are: the project, what is built, and the firmware.

use anyhow::{Context, Result};
use std::env;
use std::path::{Path, PathBuf};

/// The kernel's target, a file at the project's root; its stem is the name of cargo's directory for it.
pub const KERNEL_TARGET: &str = "x86_64-target";

/// The project's root directory: `UNPLUG_ROOT` (which `run-qemu.sh` sets), else where this package was built from.
#[must_use]
pub fn root() -> PathBuf {
    env::var_os("UNPLUG_ROOT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_path_buf(),
        PathBuf::from,
    )
}

/// Where everything that is built goes: `CARGO_TARGET_DIR`, else `target` at the project's root. Cargo starts a test in
/// its package's directory, so a relative path is taken from the root, where cargo was started as a rule.
#[must_use]
pub fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// How the kernel is built.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Profile {
    /// With checks of arithmetic and the debug assertions: what is tested.
    #[default]
    Dev,
    /// Fully optimised, without them.
    Release,
    /// As what is tested, and with trace points (docs/traces.md).
    Trace,
    /// As what is tested, and with faults that can be switched on (docs/zoo).
    Zoo,
}

impl Profile {
    /// Cargo's name for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dev | Self::Trace | Self::Zoo => "dev",
            Self::Release => "release",
        }
    }

    /// The features that the kernel is built with.
    #[must_use]
    pub fn features(self) -> Option<&'static str> {
        match self {
            Self::Dev | Self::Release => None,
            Self::Trace => Some("--features=trace"),
            Self::Zoo => Some("--features=zoo"),
        }
    }
}

/// Where cargo puts the kernel's ELF file.
#[must_use]
pub fn built_kernel(profile: Profile) -> PathBuf {
    let built = match profile {
        Profile::Dev => "debug/kernel",
        Profile::Release => "release/kernel",
        // Cargo gives all of them the same place; see `crate::build`.
        Profile::Trace => "debug/kernel-trace",
        Profile::Zoo => "debug/kernel-zoo",
    };
    target().join(KERNEL_TARGET).join(built)
}

/// The directory of the builds of what makes disk images.
pub(crate) fn image_maker_target() -> PathBuf {
    target().join("image")
}

/// Where cargo puts the program that makes disk images.
#[must_use]
pub fn image_maker() -> PathBuf {
    image_maker_target().join(crate::build::TOOL_PROFILE).join("diskimage")
}

/// The ELF file, with its symbols, of the kernel in the image: `UNPLUG_KERNEL`, else what the image was made of, else
/// where cargo puts it.
#[must_use]
pub fn kernel() -> PathBuf {
    let from_env = env::var_os("UNPLUG_KERNEL").map(PathBuf::from);
    from_env.unwrap_or_else(|| kernel_in(&image()))
}

/// The same of another image: what it was made of, else where cargo puts it.
#[must_use]
pub fn kernel_in(image: &Path) -> PathBuf {
    crate::image::made_of(image).unwrap_or_else(|| built_kernel(Profile::Dev))
}

/// The UEFI disk image of the kernel that is tested: see [`image_of`].
#[must_use]
pub fn image() -> PathBuf {
    image_of(Profile::Dev)
}

/// The UEFI disk image of a kernel that is built so: what `UNPLUG_IMAGE` names, or of the kernel with trace points
/// `UNPLUG_TRACE_IMAGE`, of that with faults `UNPLUG_ZOO_IMAGE`. Else the one in [`target`], where [`crate::image`] puts it;
/// and where there is none the one in the project's own `target`: what builds a program that uses this library may have
/// been told by `CARGO_TARGET_DIR` to put that elsewhere.
#[must_use]
pub fn image_of(profile: Profile) -> PathBuf {
    let (variable, name) = match profile {
        Profile::Dev | Profile::Release => ("UNPLUG_IMAGE", "unplug.img"),
        Profile::Trace => ("UNPLUG_TRACE_IMAGE", "unplug-trace.img"),
        Profile::Zoo => ("UNPLUG_ZOO_IMAGE", "unplug-zoo.img"),
    };
    env::var_os(variable).map_or_else(|| first_of(name, &target(), &root().join("target")), PathBuf::from)
}

/// The file of this name in the first directory, but where it is only in the second.
fn first_of(name: &str, first: &Path, second: &Path) -> PathBuf {
    let [first, second] = [first, second].map(|directory| directory.join(name));
    if !first.exists() && second.exists() { second } else { first }
}

/// The words that tell the front door of a kernel that is built so: which fault is named makes no other kernel.
pub(crate) fn front_door_words(profile: Profile) -> Vec<&'static str> {
    match profile {
        Profile::Dev => vec!["build"],
        Profile::Release => vec!["build", "--release"],
        Profile::Trace => vec!["build", "--trace"],
        Profile::Zoo => vec!["build", "--bug", zoo::BUGS[0].name],
    }
}

/// The command that makes the disk image of a kernel that is built so.
pub(crate) fn front_door(profile: Profile) -> String {
    format!("{} {}", root().join("run-qemu.sh").display(), front_door_words(profile).join(" "))
}

/// The firmware: its code, and the empty variable store that goes with it.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// The code, mapped read-only.
    pub code: PathBuf,
    /// The template of the variable store; no run writes to it.
    pub vars: PathBuf,
}

/// Finds OVMF: `OVMF_CODE` and `OVMF_VARS` if set, else where the distributions put it.
///
/// # Errors
/// When there is none, with what to install.
pub fn firmware() -> Result<Firmware> {
    if let (Some(code), Some(vars)) = (env::var_os("OVMF_CODE"), env::var_os("OVMF_VARS")) {
        return Ok(Firmware { code: code.into(), vars: vars.into() });
    }
    [
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ]
    .into_iter()
    .map(|(code, vars)| Firmware { code: code.into(), vars: vars.into() })
    .find(|firmware| firmware.code.exists() && firmware.vars.exists())
    .context("no OVMF firmware found: install Debian's package `ovmf`, or set OVMF_CODE and OVMF_VARS")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn an_image_is_found_where_it_is_whatever_directory_something_else_is_built_in() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [own, ours] = ["own", "ours"].map(|name| dir.path().join(name));
        [&own, &ours].into_iter().for_each(|directory| std::fs::create_dir(directory).expect("made"));
        assert_eq!(first_of("x", &own, &ours), own.join("x"), "there is none: it will be where it is built");
        std::fs::write(ours.join("x"), "").expect("written");
        assert_eq!(first_of("x", &own, &ours), ours.join("x"));
        std::fs::write(own.join("x"), "").expect("written");
        assert_eq!(first_of("x", &own, &ours), own.join("x"));
    }
}
