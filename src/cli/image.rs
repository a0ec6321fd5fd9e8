//! `image` and its verbs, also by machinectl's flat names.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::output::{self, Printer, age, clean, note, size, status, table, written};
use crate::config;
use crate::image::{CleanMode, CloneMethod, Image, ImageError, ImageKind, Progress, Store};
use crate::ops::{self, Ops};
use crate::report::{Events as _, OpError};
use crate::spec::{Layer, Layout, MachineSpec, RootSource};
use crate::sys::{Errno, process};

/// `image VERB`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// List images
    #[command(alias = "ls")]
    List(ListArguments),
    /// Show what images are, or what the whole store holds
    Status(StatusArguments),
    /// Print properties of images, as machinectl does
    #[command(hide = true)]
    Show(ShowArguments),
    /// Make an image of an image
    Clone(CloneArguments),
    /// Give an image another name
    Rename(RenameArguments),
    /// Remove images for good
    #[command(alias = "rm")]
    Remove(RemoveArguments),
    /// Mark an image as not to be changed, or take the mark away
    ReadOnly(ReadOnlyArguments),
    /// Limit what an image or the whole store may hold
    Limit(LimitArguments),
    /// Remove hidden images, and what was left by what was interrupted
    Clean(CleanArguments),
}

/// The same verbs by the names that machinectl has for them.
#[derive(Debug, Subcommand)]
pub(crate) enum FlatVerb {
    /// List images
    #[command(hide = true)]
    ListImages(ListArguments),
    /// Show what images are, or what the whole store holds
    #[command(hide = true)]
    ImageStatus(StatusArguments),
    /// Print properties of images
    #[command(hide = true)]
    ShowImage(ShowArguments),
    /// Make an image of an image
    #[command(hide = true)]
    Clone(CloneArguments),
    /// Give an image another name
    #[command(hide = true)]
    Rename(RenameArguments),
    /// Remove images for good
    #[command(hide = true)]
    Remove(RemoveArguments),
    /// Mark an image as not to be changed, or take the mark away
    #[command(hide = true)]
    ReadOnly(ReadOnlyArguments),
    /// Limit what an image or the whole store may hold
    #[command(hide = true)]
    SetLimit(LimitArguments),
    /// Remove hidden images
    #[command(hide = true)]
    Clean(CleanArguments),
}

impl From<FlatVerb> for ImageVerb {
    fn from(verb: FlatVerb) -> Self {
        match verb {
            FlatVerb::ListImages(args) => Self::List(args),
            FlatVerb::ImageStatus(args) => Self::Status(args),
            FlatVerb::ShowImage(args) => Self::Show(args),
            FlatVerb::Clone(args) => Self::Clone(args),
            FlatVerb::Rename(args) => Self::Rename(args),
            FlatVerb::Remove(args) => Self::Remove(args),
            FlatVerb::ReadOnly(args) => Self::ReadOnly(args),
            FlatVerb::SetLimit(args) => Self::Limit(args),
            FlatVerb::Clean(args) => Self::Clean(args),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Also hidden images
    #[arg(long, short)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Images; the store if there are none
    #[arg(value_name = "IMAGE")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// Images; the store if there are none
    #[arg(value_name = "IMAGE")]
    names: Vec<String>,
    /// Only these properties
    #[arg(long, short, value_name = "PROPERTY")]
    property: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CloneArguments {
    /// The original
    #[arg(value_name = "IMAGE")]
    from: String,
    /// Name of the clone
    #[arg(value_name = "NEW-NAME")]
    to: String,
    /// Mark the clone as not to be changed
    #[arg(long)]
    read_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RenameArguments {
    /// The image
    #[arg(value_name = "IMAGE")]
    from: String,
    /// Its new name
    #[arg(value_name = "NEW-NAME")]
    to: String,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReadOnlyArguments {
    /// The image
    #[arg(value_name = "IMAGE")]
    name: String,
    /// Whether it is to be marked
    #[arg(value_name = "BOOL", default_value = "yes", value_parser = parse_bool, action = clap::ArgAction::Set)]
    read_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArguments {
    /// The image; left out, the limit is the whole store's
    #[arg(value_name = "IMAGE")]
    name: String,
    /// Most bytes, as in `10G`; `-` for no limit
    #[arg(value_name = "SIZE")]
    limit: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CleanArguments {
    /// All images, not only hidden ones
    #[arg(long, short)]
    all: bool,
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "true" | "t" | "on" | "1" => Ok(true),
        "no" | "n" | "false" | "f" | "off" | "0" => Ok(false),
        _ => Err("expected yes or no".to_owned()),
    }
}

/// Does what a verb says and gives the exit status.
pub(super) fn run(ops: &Ops, verb: ImageVerb, printer: &Printer) -> Result<u8, OpError> {
    let layout = ops.layout();
    let store = Store::new(layout);
    let done = |(): ()| status::OK;
    match verb {
        ImageVerb::List(args) => list(&store, &args, printer),
        ImageVerb::Status(args) => show_status(layout, &store, &args, printer),
        ImageVerb::Show(args) => show(&store, &args),
        ImageVerb::Clone(args) => clone(&store, &args, printer).map(done),
        ImageVerb::Rename(args) => rename(layout, &store, &args, printer).map(done),
        ImageVerb::Remove(args) => ops.each(&args.names, |name| remove(layout, &store, name, printer)).map(done),
        ImageVerb::ReadOnly(args) => store.set_read_only(&args.name, args.read_only).map(done).map_err(failure),
        ImageVerb::Limit(args) => limit(&store, &args).map(done),
        ImageVerb::Clean(args) => clean_up(&store, &args, printer),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failure(error: ImageError) -> OpError {
    ops::image(&error)
}

/// Time since then, for reading.
fn ago(then: Option<u64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    then.map_or_else(dash, |then| age(now.saturating_sub(then / 1_000_000)))
}

fn dash() -> String {
    "-".to_owned()
}

fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(dash, size)
}

fn list(store: &Store, args: &ListArguments, printer: &Printer) -> Result<u8, OpError> {
    let images = store.list().map_err(failure)?;
    let images: Vec<Image> = images.into_iter().filter(|image| args.all || !image.is_hidden()).collect();
    if printer.json() {
        let list: Vec<Value> = images.iter().map(summary).collect();
        return written(|out| writeln!(out, "{:#}", Value::from(list)));
    }
    if images.is_empty() {
        note(&format!("No images in '{}'.", store.path().display()));
        return Ok(status::OK);
    }
    let row = |image: &Image| {
        let read_only = if image.read_only { "ro" } else { "rw" };
        let (kind, usage) = (image.kind.as_str().to_owned(), bytes(image.usage));
        vec![clean(&image.name), kind, read_only.into(), usage, ago(image.created_us), ago(image.modified_us)]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    let head = ["NAME", "TYPE", "MODE", "USAGE", "CREATED", "MODIFIED"];
    written(|out| out.write_all(table(&head, &rows).as_bytes()))
}

fn summary(image: &Image) -> Value {
    json!({
        "name": image.name,
        "type": image.kind.as_str(),
        "path": image.path,
        "read-only": image.read_only,
        "created-usec": image.created_us,
        "modified-usec": image.modified_us,
        "usage": image.usage,
        "limit": image.limit,
        "usage-exclusive": image.usage_exclusive,
        "limit-exclusive": image.limit_exclusive,
    })
}

/// What an image says of itself; nothing while it is in use or where it cannot be looked into.
#[derive(Debug, Default)]
struct Inside {
    os: Option<String>,
    hostname: Option<String>,
    machine_id: Option<String>,
    in_use: Option<String>,
}

fn look_inside(store: &Store, image: &Image) -> Result<Inside, OpError> {
    if matches!(image.kind, ImageKind::Raw | ImageKind::Block) {
        return Ok(Inside::default());
    }
    let look = || {
        let release = store.os_release(&image.name)?;
        let find = |key: &str| release.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        let id = store.machine_id(&image.name)?;
        Ok(Inside {
            os: find("PRETTY_NAME").or_else(|| find("NAME")),
            hostname: store.hostname(&image.name)?,
            machine_id: id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
            in_use: None,
        })
    };
    match look() {
        Err(ImageError::InUse { by, .. }) => {
            Ok(Inside { in_use: Some(by.unwrap_or_else(|| "another program or host".into())), ..Inside::default() })
        }
        // Not for everybody to know; the rest is.
        Err(ImageError::Call { cause, .. }) if matches!(cause.errno, Errno::EACCES | Errno::EPERM) => {
            Ok(Inside::default())
        }
        inside => inside.map_err(failure),
    }
}

fn show_status(layout: &Layout, store: &Store, args: &StatusArguments, printer: &Printer) -> Result<u8, OpError> {
    if args.names.is_empty() {
        let pool = store.pool();
        return written(|out| {
            if printer.json() {
                writeln!(out, "{:#}", json!({ "path": pool.path, "usage": pool.usage, "limit": pool.limit }))
            } else {
                let (usage, limit) = (bytes(pool.usage), bytes(pool.limit));
                writeln!(out, "{:>11}: {}", "Path", pool.path.display())?;
                writeln!(out, "{:>11}: {usage}\n{:>11}: {limit}", "Usage", "Limit")
            }
        });
    }
    let mut all = Vec::new();
    let mut text = String::new();
    for name in &args.names {
        let image = store.get(name).map_err(failure)?;
        let inside = look_inside(store, &image)?;
        let definitions = definitions_with(layout, &image.name, &image.path);
        if printer.json() {
            let mut value = summary(&image);
            if let Some(object) = value.as_object_mut() {
                object.insert("os".into(), inside.os.into());
                object.insert("hostname".into(), inside.hostname.into());
                object.insert("machine-id".into(), inside.machine_id.into());
                object.insert("in-use-by".into(), inside.in_use.into());
                object.insert("definitions".into(), json!(definitions));
            }
            all.push(value);
        } else {
            text.push_str(&describe(&image, &inside, &definitions));
        }
    }
    written(|out| if printer.json() { writeln!(out, "{:#}", Value::from(all)) } else { out.write_all(text.as_bytes()) })
}

fn describe(image: &Image, inside: &Inside, definitions: &[PathBuf]) -> String {
    let mut text = format!("{}\n", clean(&image.name));
    let mut line = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{key:>11}: {}\n", clean(&value).replace('\n', " ")));
        }
    };
    let with_exclusive = |all: Option<u64>, alone: Option<u64>| match (all, alone) {
        (Some(all), Some(alone)) if all != alone => Some(format!("{} (exclusive: {})", size(all), size(alone))),
        (all, _) => all.map(size),
    };
    line("Type", Some(image.kind.as_str().to_owned()));
    line("Path", Some(image.path.display().to_string()));
    line("Mode", Some(if image.read_only { "read-only" } else { "writable" }.to_owned()));
    line("In use by", inside.in_use.clone());
    line("OS", inside.os.clone());
    line("Hostname", inside.hostname.clone());
    line("Machine id", inside.machine_id.clone());
    line("Created", image.created_us.map(|then| format!("{} ago", ago(Some(then)))));
    line("Modified", image.modified_us.map(|then| format!("{} ago", ago(Some(then)))));
    line("Usage", with_exclusive(image.usage, image.usage_exclusive));
    line("Limit", with_exclusive(image.limit, image.limit_exclusive));
    for definition in definitions {
        line("Definition", Some(definition.display().to_string()));
    }
    text
}

/// machinectl's form: one `Property=value` a line, an empty line between two images.
fn show(store: &Store, args: &ShowArguments) -> Result<u8, OpError> {
    let number = |value: Option<u64>, none: u64| value.unwrap_or(none).to_string();
    let yes_no = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let mut blocks: Vec<Vec<(&str, String)>> = Vec::new();
    if args.names.is_empty() {
        let pool = store.pool();
        blocks.push(vec![
            ("PoolPath", pool.path.display().to_string()),
            ("PoolUsage", number(pool.usage, u64::MAX)),
            ("PoolLimit", number(pool.limit, u64::MAX)),
        ]);
    }
    for name in &args.names {
        let image = store.get(name).map_err(failure)?;
        blocks.push(vec![
            ("Name", image.name),
            ("Path", image.path.display().to_string()),
            ("Type", image.kind.as_str().to_owned()),
            ("ReadOnly", yes_no(image.read_only)),
            ("CreationTimestamp", number(image.created_us, 0)),
            ("ModificationTimestamp", number(image.modified_us, 0)),
            ("Usage", number(image.usage, u64::MAX)),
            ("Limit", number(image.limit, u64::MAX)),
            ("UsageExclusive", number(image.usage_exclusive, u64::MAX)),
            ("LimitExclusive", number(image.limit_exclusive, u64::MAX)),
        ]);
    }
    let wanted = |key: &str| args.property.is_empty() || args.property.iter().any(|p| p.split(',').any(|p| p == key));
    written(|out| {
        for (index, block) in blocks.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            for (key, value) in block.iter().filter(|(key, _)| wanted(key)) {
                writeln!(out, "{key}={}", clean(value))?;
            }
        }
        Ok(())
    })
}

/// A bar on a terminal, nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(printer: &Printer, text: String) -> Self {
        if !printer.draws() {
            return Self(None);
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3}% {eta}");
        let bar = ProgressBar::new(1).with_message(text);
        Self(Some(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))))
    }

    fn set(&self, progress: &Progress) {
        // A file costs about as much as one block of contents.
        let weigh = |files: u64, bytes: u64| files.saturating_mul(4096).saturating_add(bytes);
        if let Some(bar) = &self.0 {
            bar.set_length(weigh(progress.files_total, progress.bytes_total));
            bar.set_position(weigh(progress.files, progress.bytes));
        }
    }

    fn clear(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

fn clone(store: &Store, args: &CloneArguments, printer: &Printer) -> Result<(), OpError> {
    let (from, to) = (clean(&args.from), clean(&args.to));
    let doing = format!("cannot clone image '{from}' as '{to}'");
    // What would end us leaves half a clone, so it is asked for and obeyed in order.
    let signals = process::signal_fd(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    let signals = signals.map_err(|e| OpError::call(doing.clone(), &e))?;
    let bar = Bar::new(printer, format!("cloning '{from}'"));
    let cloned = store.clone(&args.from, &args.to, args.read_only, &mut |progress| {
        bar.set(progress);
        if matches!(signals.read_signal(), Ok(None)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    bar.clear();
    let cloned = cloned.map_err(|error| match error {
        ImageError::Cancelled => OpError::new(format!("{doing}: interrupted; nothing is left of it")),
        error => ops::image(&error),
    })?;
    if cloned.was_in_use && cloned.method != CloneMethod::Snapshot {
        printer.warn(&format!("image '{from}' is in use: its files were copied at different moments"));
    }
    let how = match cloned.method {
        CloneMethod::Snapshot => "as a snapshot",
        CloneMethod::Reflink => "file by file, sharing contents (reflink)",
        CloneMethod::Copy => "by copying",
    };
    printer.say(&format!("Cloned image '{from}' as '{to}' {how}."));
    Ok(())
}

fn rename(layout: &Layout, store: &Store, args: &RenameArguments, printer: &Printer) -> Result<(), OpError> {
    let image = store.get(&args.from).map_err(failure)?;
    store.rename(&args.from, &args.to).map_err(failure)?;
    printer.say(&format!("Renamed image '{}' to '{}'.", clean(&args.from), clean(&args.to)));
    warn_of_definitions(layout, &image, printer);
    Ok(())
}

fn remove(layout: &Layout, store: &Store, name: &str, printer: &Printer) -> Result<(), OpError> {
    let image = store.get(name).map_err(failure)?;
    store.remove(name).map_err(failure)?;
    printer.say(&format!("Removed image '{}'.", clean(name)));
    warn_of_definitions(layout, &image, printer);
    for settings in store.settings(name) {
        printer.say(&format!("Kept '{}'.", settings.display()));
    }
    Ok(())
}

/// Says which definitions name an image that is not there any more; they are their writers' to change.
fn warn_of_definitions(layout: &Layout, image: &Image, printer: &Printer) {
    for definition in definitions_with(layout, &image.name, &image.path) {
        printer.warn(&format!("'{}' still names image '{}'", definition.display(), image.name));
    }
}

/// The definitions of machines whose trees are, or hold, the image; broken ones say nothing.
fn definitions_with(layout: &Layout, name: &str, path: &Path) -> Vec<PathBuf> {
    let names_it = |layer: &Layer| match layer {
        Layer::Image(image) => image.as_str() == name,
        Layer::Path(layer) => layer == path,
    };
    let uses = |spec: &MachineSpec| {
        let is_root = match &spec.root.source {
            RootSource::Directory(directory) => directory == path,
            RootSource::Overlay { lower, .. } => lower.iter().any(names_it),
        };
        is_root || spec.overlays.iter().any(|overlay| overlay.lower.iter().any(names_it))
    };
    let definitions = config::list(layout).into_iter();
    let loaded = definitions.filter_map(|(name, _)| config::load(layout, name.as_str()).ok());
    loaded.filter(|loaded| uses(&loaded.spec)).map(|loaded| loaded.definition).collect()
}

fn limit(store: &Store, args: &LimitArguments) -> Result<(), OpError> {
    let parse = |text: &str| match text {
        "-" | "none" | "infinity" => Ok(None),
        text => config::parse_size(text).map(Some).map_err(OpError::usage),
    };
    match &args.limit {
        Some(limit) => store.set_limit(&args.name, parse(limit)?).map_err(failure),
        None => store.set_pool_limit(parse(&args.name)?).map_err(failure),
    }
}

fn clean_up(store: &Store, args: &CleanArguments, printer: &Printer) -> Result<u8, OpError> {
    let mode = if args.all { CleanMode::All } else { CleanMode::Hidden };
    let removed = store.clean(mode).map_err(failure)?;
    if printer.json() {
        let list = removed.iter().map(|(name, usage)| json!({ "name": name, "usage-exclusive": usage }));
        return written(|out| writeln!(out, "{:#}", Value::from(list.collect::<Vec<_>>())));
    }
    for (name, usage) in &removed {
        let freed = usage.map_or_else(String::new, |bytes| format!(", {} freed", size(bytes)));
        printer.say(&format!("Removed image '{}'{freed}.", clean(name)));
    }
    if removed.is_empty() {
        printer.say("Nothing to remove.");
    }
    Ok(output::status::OK)
}
