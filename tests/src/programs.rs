//! The programs under test: those of a plain build, which `make programs` puts where no other build overwrites them.
//!
//! Cargo builds a crate once with all features that anything in the same build wants, so the `vmstore` of a build of
//! the tests has test support in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

/// Directory with the programs; by default `programs/` in Cargo's target directory.
const VARIABLE: &str = "VMSTORE_PROGRAMS";
const PROGRAMS: [&str; 2] = ["vmstore", "vmfs"];

/// The program `vmstore`; `vmfs` is in the same directory.
///
/// # Errors
/// A text that says what is missing or out of date, and how to build it.
pub fn vmstore() -> Result<&'static Path, &'static str> {
    static VMSTORE: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let dir = directory();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a part of the workspace");
        for program in PROGRAMS {
            check(&dir.join(program), repository).map_err(|what| format!("{what}; `make programs` builds it"))?;
        }
        Ok(dir.join("vmstore"))
    });
    VMSTORE.as_deref().map_err(String::as_str)
}

fn directory() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| target_directory().join("programs"), PathBuf::from)
}

/// Cargo's target directory: this program is `release/NAME` in it, or `release/deps/NAME` if it is a test.
fn target_directory() -> PathBuf {
    let this = env::current_exe().expect("Linux tells a program where it is");
    let profile = this.parent().map(|dir| if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir });
    profile.and_then(Path::parent).expect("Cargo's programs are two directories deep").to_owned()
}

/// Fails unless a program was built from this repository, as its sources are now.
fn check(program: &Path, repository: &Path) -> Result<(), String> {
    let built = modified(program).ok_or_else(|| format!("{} is missing", program.display()))?;
    let sources = sources(program).ok_or_else(|| format!("{}.d is missing", program.display()))?;
    if !sources.iter().any(|source| source.starts_with(repository)) {
        return Err(format!("{} was built from another repository than {}", program.display(), repository.display()));
    }
    let manifests = ["Cargo.toml", "Cargo.lock"].map(|name| repository.join(name));
    match sources.iter().chain(&manifests).find(|source| modified(source).is_none_or(|changed| changed > built)) {
        Some(source) => Err(format!("{} is older than {}", program.display(), source.display())),
        None => Ok(()),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// The sources of a program: Cargo writes them as a rule of make, `PROGRAM: SOURCE SOURCE ...`.
fn sources(program: &Path) -> Option<Vec<PathBuf>> {
    let rule = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = rule.lines().next()?.split_once(": ")?;
    let names = sources.replace("\\ ", "\0");
    Some(names.split(' ').filter(|name| !name.is_empty()).map(|name| name.replace('\0', " ").into()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_program_is_refused_that_is_missing_or_out_of_date_or_of_another_repository() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (program, source) = (path("vmstore"), path("a source.rs"));
        let refusal = || check(&program, dir.path()).expect_err("it is refused");
        assert!(refusal().ends_with("vmstore is missing"), "{}", refusal());
        fs::write(&program, "").unwrap();
        assert!(refusal().ends_with("vmstore.d is missing"), "{}", refusal());

        let rule =
            |source: &Path| format!("{}: {}\n", program.display(), source.display().to_string().replace(' ', "\\ "));
        fs::write(path("vmstore.d"), rule(Path::new("/elsewhere/main.rs"))).unwrap();
        assert!(refusal().contains("another repository"), "{}", refusal());

        fs::write(path("vmstore.d"), rule(&source)).unwrap();
        let built = modified(&program).unwrap();
        for name in ["a source.rs", "Cargo.toml", "Cargo.lock"] {
            assert!(refusal().ends_with(&format!("is older than {}", path(name).display())), "{}", refusal());
            File::create(path(name)).unwrap().set_modified(built).unwrap();
        }
        assert_eq!(check(&program, dir.path()), Ok(()));
        File::open(&source).unwrap().set_modified(built + Duration::from_secs(1)).unwrap();
        assert!(refusal().ends_with("a source.rs"), "{}", refusal());
    }
}
