//! `io.systemd.MachineImage`: each method becomes one or more requests of the core.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::context::{Context, nothing};
use super::machines::{Metadata, pairs};
use super::wire::{Answer, Refusal, Reply};
use crate::daemon::core::images::{self, Change};
use crate::image::{CleanMode, Store};
use crate::spec::MachineId;

/// Answers a call.
pub(super) async fn serve(context: &mut Context<'_>, method: &str) -> Answer<Vec<Reply>> {
    match method {
        "List" => list(context).await,
        "Update" => update(context).await,
        "Clone" => {
            let name: String = context.parameters.need("name")?;
            let new: String = context.parameters.need("newName")?;
            let read_only = context.parameters.get("readOnly")?.unwrap_or(false);
            context.interaction()?;
            context.no_more()?;
            change(context, &name, Change::Clone { new, read_only }).await
        }
        "Remove" => {
            let name: String = context.parameters.need("name")?;
            context.interaction()?;
            context.no_more()?;
            change(context, &name, Change::Remove).await
        }
        "SetPoolLimit" => {
            let limit: u64 = context.parameters.need("limit")?;
            context.interaction()?;
            context.no_more()?;
            context.translate(images::limit_pool(context.daemon, &context.caller, limited(limit)).await)?;
            Ok(nothing())
        }
        _ => clean(context).await,
    }
}

async fn change(context: &Context<'_>, name: &str, change: Change) -> Answer<Vec<Reply>> {
    context.translate(images::change(context.daemon, &context.caller, name, change).await)?;
    Ok(nothing())
}

/// The greatest number stands for no limit.
fn limited(bytes: u64) -> Option<u64> {
    (bytes != u64::MAX).then_some(bytes)
}

async fn update(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let name: String = context.parameters.need("name")?;
    let new: Option<String> = context.parameters.get("newName")?;
    let read_only: Option<bool> = context.parameters.get("readOnly")?;
    let limit: Option<u64> = context.parameters.get("limit")?;
    context.interaction()?;
    context.no_more()?;
    // The name last: the others go by the old one.
    if let Some(read_only) = read_only {
        change(context, &name, Change::ReadOnly(read_only)).await?;
    }
    if let Some(limit) = limit {
        change(context, &name, Change::Limit(limited(limit))).await?;
    }
    if let Some(new) = new {
        change(context, &name, Change::Rename(new)).await?;
    }
    Ok(nothing())
}

/// Which images to remove.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Which {
    All,
    Hidden,
}

async fn clean(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let mode: Which = context.parameters.need("mode")?;
    context.interaction()?;
    context.no_more()?;
    if !context.more {
        return Err(Refusal::named("org.varlink.service.ExpectedMore"));
    }
    let mode = match mode {
        Which::All => CleanMode::All,
        Which::Hidden => CleanMode::Hidden,
    };
    let removed = context.translate(images::clean(context.daemon, &context.caller, mode).await)?;
    let replies: Vec<Reply> = removed
        .into_iter()
        .map(|(name, usage)| {
            let mut fields = json!({ "name": name });
            if let Some(usage) = usage {
                fields["usageExclusive"] = json!(usage);
            }
            fields.into()
        })
        .collect();
    // There is no answer without an image.
    if replies.is_empty() { Err(Refusal::named("io.systemd.MachineImage.NoSuchImage")) } else { Ok(replies) }
}

async fn list(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let name: Option<String> = context.parameters.get("name")?;
    let metadata = context.parameters.get::<Metadata>("acquireMetadata")?.unwrap_or_default();
    context.interaction()?;
    context.no_more()?;
    if let Some(name) = name {
        return Ok(vec![describe(context, &name, metadata).await?.into()]);
    }
    if !context.more {
        return Err(Refusal::named("org.varlink.service.ExpectedMore"));
    }
    let images = context.translate(images::list(context.daemon).await)?;
    let mut replies: Vec<Reply> = Vec::with_capacity(images.len());
    for image in images {
        match describe(context, &image.name, metadata).await {
            Ok(reply) => replies.push(reply.into()),
            // It has gone while we looked at the others.
            Err(e) if e.name.ends_with(".NoSuchImage") => {}
            Err(e) => return Err(e),
        }
    }
    if replies.is_empty() { Err(Refusal::named("io.systemd.MachineImage.NoSuchImage")) } else { Ok(replies) }
}

/// What is said of one image.
async fn describe(context: &Context<'_>, name: &str, metadata: Metadata) -> Answer<Value> {
    let image = context.translate(images::find(context.daemon, name))?;
    let mut fields = Map::new();
    fields.insert("class".into(), json!("machine"));
    fields.insert("name".into(), json!(image.name));
    fields.insert("path".into(), json!(image.path.display().to_string()));
    fields.insert("type".into(), json!(image.kind.as_str()));
    fields.insert("readOnly".into(), json!(image.read_only));
    let numbers = [
        ("creationTimestamp", image.created_us),
        ("modificationTimestamp", image.modified_us),
        ("usage", image.usage),
        ("usageExclusive", image.usage_exclusive),
        ("limit", image.limit),
        ("limitExclusive", image.limit_exclusive),
    ];
    for (field, number) in numbers {
        // Both stand for 'not known'.
        if let Some(number) = number.filter(|number| ![0, u64::MAX].contains(number)) {
            fields.insert(field.into(), json!(number));
        }
    }
    if metadata != Metadata::No {
        look_into(context, name, metadata, &mut fields).await?;
    }
    Ok(Value::Object(fields))
}

async fn look_into(
    context: &Context<'_>,
    name: &str,
    metadata: Metadata,
    fields: &mut Map<String, Value>,
) -> Answer<()> {
    let daemon = context.daemon;
    let details = [("image", name), ("verb", "list")];
    let inspect = "org.freedesktop.machine1.inspect-images";
    context.translate(daemon.authorise(&context.caller, inspect, &details).await)?;
    let hostname = images::look_into(daemon, name, Store::hostname).await;
    let hostname = metadata.accept(context.translate(hostname))?.flatten();
    fields.extend(hostname.map(|hostname| ("hostname".into(), json!(hostname))));
    let id = images::look_into(daemon, name, Store::machine_id).await;
    let id = metadata.accept(context.translate(id))?.flatten().filter(|id| *id != [0; 16]);
    fields.extend(id.map(|id| ("machineId".into(), json!(MachineId(id).to_string()))));
    let info = images::look_into(daemon, name, Store::machine_info).await;
    let info = metadata.accept(context.translate(info))?.unwrap_or_default();
    let release = images::look_into(daemon, name, Store::os_release).await;
    let release = metadata.accept(context.translate(release))?.unwrap_or_default();
    for (field, variables) in [("machineInfo", info), ("OSRelease", release)] {
        if !variables.is_empty() {
            fields.insert(field.into(), pairs(variables));
        }
    }
    Ok(())
}
