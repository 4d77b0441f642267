//! Writes the bill of materials of the programs: CycloneDX 1.6 in JSON, of what Cargo.lock fixes.
//!
//! `cargo metadata --locked --format-version 1 --filter-platform TRIPLE | cargo run --example sbom -- COMPILER Cargo.lock`.
//! `packaging/deb` puts it into the package and beside it. The same sources make the same bytes: no serial number, and the
//! time is SOURCE_DATE_EPOCH's.
//!
//! A component is `required` if its code is in a program; `excluded` if it only takes part in building one (macros, build
//! scripts). What tests need alone is not listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{self, Error},
};

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
    root: String,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// None for an ordinary dependency, else `build` or `dev`.
#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// Where a package's code ends up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    InAProgram,
    InBuilding,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(compiler), Some(lock)) = (arguments.next(), arguments.next()) else {
        return Err(Error::other("usage: sbom COMPILER Cargo.lock <metadata"));
    };
    let metadata: Metadata = serde_json::from_reader(io::stdin())?;
    let lock: Lock = toml::from_str(&fs::read_to_string(lock)?).map_err(Error::other)?;
    let epoch =
        env::var("SOURCE_DATE_EPOCH").map_or(Ok(0), |seconds| seconds.parse()).map_err(Error::other)?;
    let bill = bill(&metadata, &lock, &compiler, epoch)
        .ok_or_else(|| Error::other("cargo's metadata is not whole"))?;
    serde_json::to_writer_pretty(io::stdout().lock(), &bill)?;
    Ok(())
}

fn bill(metadata: &Metadata, lock: &Lock, compiler: &str, epoch: i64) -> Option<Value> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (&*package.id, package)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
    let root = packages.get(&*metadata.resolve.root)?;
    let used = used(&packages, &nodes, &root.id)?;

    let checksum = |package: &Package| {
        let same = |locked: &&Locked| locked.name == package.name && locked.version == package.version;
        lock.package.iter().find(same).and_then(|locked| locked.checksum.clone())
    };
    let mut components = Vec::new();
    for (id, how) in used.iter().filter(|(id, _)| **id != root.id) {
        let package = packages.get(id)?;
        let mut component = component(package, "library");
        let scope = if *how == Use::InAProgram { "required" } else { "excluded" };
        component["scope"] = scope.into();
        // What came from elsewhere than the registry has none, and deny.toml lets nothing in from there.
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum(package)? }]);
        components.push(component);
    }
    components.sort_by_key(|component| component["bom-ref"].to_string());

    let mut dependencies = Vec::new();
    for id in used.keys() {
        let on: BTreeSet<String> = nodes
            .get(id)?
            .deps
            .iter()
            .filter(|on| counts(on))
            .map(|on| &*on.pkg)
            .filter(|on| used.contains_key(on))
            .filter_map(|on| packages.get(on))
            .map(|on| purl(on))
            .collect();
        dependencies.push(json!({ "ref": purl(packages.get(id)?), "dependsOn": on }));
    }
    dependencies.sort_by_key(|dependency| dependency["ref"].to_string());

    let (tool, version) = compiler.split_once(' ')?;
    Some(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": jiff::Timestamp::from_second(epoch).ok()?.to_string(),
            "component": component(root, "application"),
            // Its standard library is in the programs too.
            "tools": { "components": [{ "type": "application", "name": tool, "version": version }] },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What tests need is no part of it.
fn counts(dependency: &Dependency) -> bool {
    dependency.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
}

/// All that is reached from `root`, each for the nearer of its uses.
fn used<'a>(
    packages: &BTreeMap<&'a str, &'a Package>,
    nodes: &BTreeMap<&'a str, &'a Node>,
    root: &'a str,
) -> Option<BTreeMap<&'a str, Use>> {
    let mut used = BTreeMap::new();
    let mut next = vec![(root, Use::InAProgram)];
    while let Some((id, how)) = next.pop() {
        if used.get(id).is_some_and(|known| *known <= how) {
            continue;
        }
        used.insert(id, how);
        for dependency in nodes.get(id)?.deps.iter().filter(|dependency| counts(dependency)) {
            let is_macro = packages
                .get(&*dependency.pkg)?
                .targets
                .iter()
                .any(|target| target.kind.iter().any(|kind| kind == "proc-macro"));
            let is_ordinary = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            let how = if is_macro || !is_ordinary { Use::InBuilding } else { how };
            next.push((&dependency.pkg, how));
        }
    }
    Some(used)
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

fn component(package: &Package, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": purl(package),
        "purl": purl(package),
        "name": package.name,
        "version": package.version,
    });
    if let Some(license) = &package.license {
        // The older spelling, which is no SPDX expression.
        let expression = license.replace(" / ", " OR ").replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}
