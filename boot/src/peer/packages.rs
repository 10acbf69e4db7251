//! Debian's packages: found and fetched by apt, in directories of this project, so that neither root nor the machine's
//! own lists are needed or touched.

use super::{Series, unfinished};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Programs that are used, and the package of each.
const TOOLS: [(&str, &str); 7] = [
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("sha256sum", "coreutils"),
    ("gcc-12", "gcc-12"),
    ("make", "make"),
    ("xz", "xz-utils"),
];
/// Files, one of which has to be there, and the package.
const FILES: [(&[&str], &str); 2] = [
    (&["/usr/lib/x86_64-linux-gnu/libc.a"], "libc6-dev"),
    (&["/usr/lib/x86_64-linux-gnu/libelf.so.1", "/lib/x86_64-linux-gnu/libelf.so.1"], "libelf1"),
];
/// For how long the lists of what there is count as new.
const LISTS_ARE_NEW: Duration = Duration::from_secs(24 * 3600);
/// As Debian names its own architecture.
const ARCHITECTURE: &str = "amd64";

/// Refuses where something is missing that apt could not bring into a directory.
///
/// # Errors
/// One line with all of it.
pub fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let lacking = missing(&found, &|file| Path::new(file).exists());
    ensure!(
        lacking.is_empty(),
        "--linux measures Debian's kernel on Debian 12, and lacks: apt-get install -y --no-install-recommends {}",
        lacking.join(" ")
    );
    Ok(())
}

/// The packages that are missing.
fn missing(found: &dyn Fn(&str) -> bool, exists: &dyn Fn(&str) -> bool) -> Vec<&'static str> {
    let tools = TOOLS.iter().filter(|(tool, _)| !found(tool)).map(|(_, package)| *package);
    let files = FILES.iter().filter(|(files, _)| !files.iter().any(|file| exists(file))).map(|(_, package)| *package);
    let mut lacking: Vec<_> = tools.chain(files).collect();
    lacking.dedup();
    lacking
}

/// apt, with lists and a cache of its own.
#[derive(Debug)]
pub struct Apt {
    place: PathBuf,
    /// The directory for what is not whole.
    root: PathBuf,
}

/// A package that can be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    depends: String,
    sha256: String,
}

impl Package {
    /// Takes apart what `apt-cache show` prints; `None` where a field is missing.
    fn parse(text: &str) -> Option<Self> {
        let stanza = text.split("\n\n").next()?;
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some(Self {
            name: field("Package")?.into(),
            version: field("Version")?.into(),
            depends: field("Depends").unwrap_or_default().into(),
            sha256: field("SHA256")?.into(),
        })
    }

    /// The first package that it depends on whose name begins and ends so.
    #[must_use]
    pub fn needs(&self, begins: &str, ends: &str) -> Option<&str> {
        let names = self.depends.split([',', '|']).filter_map(|one| one.split_whitespace().next());
        names.into_iter().find(|name| name.starts_with(begins) && name.ends_with(ends))
    }
}

impl Apt {
    /// Brings the lists up to date, where they are older than a day. Old ones are used where there is no network.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(place: &Path) -> Result<Self> {
        let apt = Self { place: place.join("apt"), root: place.into() };
        for dir in ["state/lists/partial", "cache/archives/partial", "debs"] {
            let dir = apt.place.join(dir);
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        let stamp = apt.place.join("updated");
        let age = stamp.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_none_or(|age| age > LISTS_ARE_NEW) && apt.command("apt-get").arg("update").output()?.status.success()
        {
            fs::write(&stamp, "")?;
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = |name: &str| self.place.join(name).display().to_string();
        command.args([
            "-q",
            "-o",
            &format!("Dir::State={}", dir("state")),
            "-o",
            &format!("Dir::Cache={}", dir("cache")),
        ]);
        // Which architectures the machine knows; and apt's own user may not write into our directories.
        command.args(["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User="]);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// When none is known: one line with what apt said.
    pub fn find(&self, name: &str) -> Result<Package> {
        let shown = self.command("apt-cache").args(["show", "--no-all-versions", name]).output()?;
        if let Some(package) = Package::parse(&String::from_utf8_lossy(&shown.stdout)) {
            return Ok(package);
        }
        // It says what stands in the way now.
        let update = self.command("apt-get").arg("update").output()?;
        bail!("{name} is in no list of apt: it needs the network and Debian 12's sources ({})", last_words(&update))
    }

    /// The package's file: fetched, or kept from before; its checksum is looked at in either case.
    ///
    /// # Errors
    /// When it cannot be had whole: one line.
    pub fn fetch(&self, package: &Package) -> Result<PathBuf> {
        let kept =
            self.place.join("debs").join(format!("{}_{}.deb", package.name, package.version.replace(':', "%3a")));
        if kept.exists() {
            if checksum(&kept)? == package.sha256 {
                return Ok(kept);
            }
            fs::remove_file(&kept).with_context(|| kept.display().to_string())?;
        }
        let directory = unfinished(&self.root)?;
        let asked = format!("{}={}", package.name, package.version);
        let done = self.command("apt-get").args(["download", &asked]).current_dir(directory.path()).output()?;
        let file = fs::read_dir(directory.path())?.flatten().map(|entry| entry.path());
        let Some(file) = file.into_iter().find(|file| file.extension().is_some_and(|ending| ending == "deb")) else {
            bail!("{asked} cannot be fetched: it needs the network ({})", last_words(&done));
        };
        keep_whole(&file, &kept, package)?;
        Ok(kept)
    }
}

/// Unpacks a package's file into a directory.
///
/// # Errors
/// One line.
pub fn unpack(file: &Path, into: &Path) -> Result<()> {
    let done = Command::new("dpkg-deb").arg("-x").arg(file).arg(into).stdin(Stdio::null()).output();
    let done = done.context("dpkg-deb")?;
    ensure!(done.status.success(), "{} cannot be unpacked: {}", file.display(), last_words(&done));
    Ok(())
}

/// Gives a file that was fetched its name, if it is whole.
fn keep_whole(file: &Path, kept: &Path, package: &Package) -> Result<()> {
    let found = checksum(file)?;
    ensure!(
        found == package.sha256,
        "{} {} was not fetched whole: its checksum is {found}, not {}",
        package.name,
        package.version,
        package.sha256
    );
    fs::rename(file, kept).with_context(|| kept.display().to_string())
}

fn checksum(file: &Path) -> Result<String> {
    let summed = Command::new("sha256sum").arg(file).output().context("sha256sum")?;
    ensure!(summed.status.success(), "{}: {}", file.display(), last_words(&summed));
    let text = String::from_utf8_lossy(&summed.stdout);
    // A name with odd characters makes the line begin with a backslash.
    Ok(text.trim_start_matches('\\').split_whitespace().next().unwrap_or_default().into())
}

/// The last line that a program said, for a message of one line.
pub fn last_words(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].map(|text| String::from_utf8_lossy(text).into_owned());
    let lines = said.iter().rev().flat_map(|text| text.lines().rev());
    let line = lines.map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| output.status.to_string(), ToString::to_string)
}

/// A kernel that can be measured: its packages.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The kernel and its modules.
    pub image: Package,
    /// What modules are built with.
    pub headers: Vec<Package>,
}

impl Kernel {
    /// The newest one of the series.
    ///
    /// # Errors
    /// When a package is not there.
    pub fn of(series: Series, apt: &Apt) -> Result<Self> {
        let meta = apt.find(series.package())?;
        let image = meta.needs("linux-image-", ARCHITECTURE).map(String::from);
        let Some(image) = image else { bail!("{} {} names no kernel", meta.name, meta.version) };
        let release = image.trim_start_matches("linux-image-").to_string();
        ensure!(
            release.strip_prefix(series.word()).is_some_and(|rest| rest.starts_with('.')),
            "Debian's kernel {release} is not of the series {}: --linux needs Debian 12's sources",
            series.word()
        );
        let headers = apt.find(&format!("linux-headers-{release}"))?;
        let (Some(common), Some(kbuild)) =
            (headers.needs("linux-headers-", "-common"), headers.needs("linux-kbuild-", ""))
        else {
            bail!("{} {} does not name what modules are built with", headers.name, headers.version)
        };
        let (common, kbuild) = (apt.find(common)?, apt.find(kbuild)?);
        Ok(Self { image: apt.find(&image)?, headers: vec![headers, common, kbuild], release })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: linux-headers-6.12.117+deb12-amd64\nVersion: 6.12.117-1~deb12u1\n\
        Depends: linux-base (>= 4.12~), linux-headers-6.12.117+deb12-common (= 6.12.117-1~deb12u1), \
        linux-image-6.12.117+deb12-amd64 (= 6.12.117-1~deb12u1) | linux-image-6.12.117+deb12-amd64-unsigned, \
        linux-kbuild-6.12.117+deb12, gcc-12\nSHA256: 8ee4\n\nPackage: another\nVersion: 1\nSHA256: 00\n";

    #[test]
    fn a_package_is_taken_apart() {
        let package = Package::parse(SHOWN).expect("a package");
        assert_eq!((&*package.version, &*package.sha256), ("6.12.117-1~deb12u1", "8ee4"));
        assert_eq!(package.needs("linux-headers-", "-common"), Some("linux-headers-6.12.117+deb12-common"));
        assert_eq!(package.needs("linux-kbuild-", ""), Some("linux-kbuild-6.12.117+deb12"));
        assert_eq!(package.needs("linux-image-", ARCHITECTURE), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(package.needs("dracut", ""), None);
        assert_eq!(Package::parse("Package: x\nVersion: 1\n"), None, "no checksum");
        assert_eq!(Package::parse(""), None);
    }

    #[test]
    fn what_is_missing_is_one_line_with_every_package() {
        assert_eq!(missing(&|_| true, &|_| true), [""; 0]);
        assert_eq!(missing(&|_| false, &|_| true), ["apt", "dpkg", "coreutils", "gcc-12", "make", "xz-utils"]);
        assert_eq!(missing(&|tool| tool != "make", &|file| !file.ends_with("libc.a")), ["make", "libc6-dev"]);
        // One of two places is enough.
        assert_eq!(missing(&|_| true, &|file| file.starts_with("/usr")), [""; 0]);
        assert_eq!(missing(&|_| true, &|_| false), ["libc6-dev", "libelf1"]);
    }

    #[test]
    fn a_file_that_is_cut_off_does_not_get_its_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, kept) = (directory.path().join("fetched"), directory.path().join("kept.deb"));
        // The checksum of "abc", from FIPS 180-2.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_string();
        let package = Package { name: "abc".into(), version: "1".into(), depends: String::new(), sha256 };
        fs::write(&file, "ab").expect("written");
        let error = keep_whole(&file, &kept, &package).expect_err("it is cut off").to_string();
        assert!(error.starts_with("abc 1 was not fetched whole") && error.lines().count() == 1, "{error}");
        assert!(!kept.exists());
        fs::write(&file, "abc").expect("written");
        keep_whole(&file, &kept, &package).expect("it is whole");
        assert!(kept.exists() && !file.exists());
    }
}
