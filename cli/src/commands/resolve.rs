//! Finds the snapshots that selectors mean, and suggests a similar name where there is none.

use chunkstore::Error;
use chunkstore::catalog::{Catalog, ImageName, Selector, SnapshotName};

use crate::failure::{Failure, Result};

/// Names are similar from this Jaro-Winkler similarity on.
const ALIKE: f64 = 0.8;

/// Finds the snapshot that a selector means.
pub(crate) fn snapshot(catalog: &Catalog, selector: &Selector) -> Result<SnapshotName> {
    catalog.resolve(selector).map_err(|error| with_near_name(catalog, &selector.image, error))
}

/// Finds several snapshots, each once, in the order given; fails if one is missing.
pub(crate) fn snapshots(catalog: &Catalog, selectors: &[Selector]) -> Result<Vec<SnapshotName>> {
    let mut names = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let name = snapshot(catalog, selector)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Fails unless there are snapshots of the image.
pub(crate) fn image(catalog: &Catalog, image: &ImageName) -> Result<()> {
    if catalog.times(image)?.is_empty() {
        return Err(with_near_name(catalog, image, Error::not_found(format!("image {image}"))));
    }
    Ok(())
}

fn with_near_name(catalog: &Catalog, wanted: &ImageName, error: Error) -> Failure {
    let is_missing = matches!(error, Error::NotFound { .. });
    let failure = Failure::from(error);
    let images = catalog.images().unwrap_or_default();
    if !is_missing || images.contains(wanted) {
        return failure;
    }
    match nearest(wanted.as_ref(), images.iter().map(AsRef::as_ref)) {
        Some(near) => failure.hint(format!("did you mean {near}?")),
        None => failure.hint("`vmstore list` lists them"),
    }
}

fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_ascii_lowercase();
    let likeness = |name: &str| strsim::jaro_winkler(&wanted, &name.to_ascii_lowercase());
    let (near, likeness) = names.map(|name| (name, likeness(name))).max_by(|a, b| a.1.total_cmp(&b.1))?;
    (likeness >= ALIKE).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        let names = ["web01", "db-main", "mail"];
        let cases = [("web1", Some("web01")), ("WEB01", Some("web01")), ("dbmain", Some("db-main")), ("xyz", None)];
        for (wanted, near) in cases {
            assert_eq!(nearest(wanted, names.into_iter()), near, "{wanted}");
        }
        assert_eq!(nearest("web01", [].into_iter()), None);
    }
}
