//! `io.systemd.MachineImage`: each method becomes one or more of the manager's on D-Bus.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use zbus::wire::{OwnedObjectPath, Variant};

use super::machines::{Metadata, pairs};
use super::wire::{Answer, Refusal, Reply};
use super::{Context, nothing};
use crate::daemon::dbus::image;

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
            context.ask::<_, ()>("CloneImage", &(name, new, read_only)).await?;
            Ok(nothing())
        }
        "Remove" => {
            let name: String = context.parameters.need("name")?;
            context.interaction()?;
            context.no_more()?;
            context.ask::<_, ()>("RemoveImage", &name).await?;
            Ok(nothing())
        }
        "SetPoolLimit" => {
            let limit: u64 = context.parameters.need("limit")?;
            context.interaction()?;
            context.no_more()?;
            context.ask::<_, ()>("SetPoolLimit", &limit).await?;
            Ok(nothing())
        }
        _ => clean(context).await,
    }
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
        context.ask::<_, ()>("MarkImageReadOnly", &(&name, read_only)).await?;
    }
    if let Some(limit) = limit {
        context.ask::<_, ()>("SetImageLimit", &(&name, limit)).await?;
    }
    if let Some(new) = new {
        context.ask::<_, ()>("RenameImage", &(&name, new)).await?;
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
    let word = match mode {
        Which::All => "all",
        Which::Hidden => "hidden",
    };
    let removed: Vec<(String, u64)> = context.ask("CleanPool", &word).await?;
    let replies: Vec<Reply> = removed
        .into_iter()
        .map(|(name, usage)| {
            let mut fields = json!({ "name": name });
            if usage != u64::MAX {
                fields["usageExclusive"] = json!(usage);
            }
            fields.into()
        })
        .collect();
    // There is no answer without an image.
    if replies.is_empty() { Err(Refusal::named("io.systemd.MachineImage.NoSuchImage")) } else { Ok(replies) }
}

async fn list(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    type Row = (String, String, bool, u64, u64, u64, OwnedObjectPath);
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
    let rows: Vec<Row> = context.ask("ListImages", &()).await?;
    let mut replies: Vec<Reply> = Vec::with_capacity(rows.len());
    for (name, ..) in rows {
        match describe(context, &name, metadata).await {
            Ok(reply) => replies.push(reply.into()),
            // It has gone while we looked at the others.
            Err(e) if e.name.ends_with(".NoSuchImage") => {}
            Err(e) => return Err(e),
        }
    }
    if replies.is_empty() { Err(Refusal::named("io.systemd.MachineImage.NoSuchImage")) } else { Ok(replies) }
}

/// What is said of one image: its properties on D-Bus under other names.
async fn describe(context: &Context<'_>, name: &str, metadata: Metadata) -> Answer<Value> {
    let properties = Box::pin(image::properties(context.daemon, name)).await;
    let properties = properties.map_err(|e| Refusal::translate(&e, context.interface))?;
    let properties: HashMap<&str, Variant<'_>> = properties.into_iter().collect();
    let mut fields = Map::new();
    fields.insert("class".into(), json!("machine"));
    let texts = [("name", "Name"), ("path", "Path"), ("type", "Type")];
    for (field, property) in texts {
        if let Some(Variant::Str(text)) = properties.get(property) {
            fields.insert(field.into(), json!(text.as_str()));
        }
    }
    fields.insert("readOnly".into(), json!(matches!(properties.get("ReadOnly"), Some(Variant::Bool(true)))));
    let numbers = [
        ("creationTimestamp", "CreationTimestamp"),
        ("modificationTimestamp", "ModificationTimestamp"),
        ("usage", "Usage"),
        ("usageExclusive", "UsageExclusive"),
        ("limit", "Limit"),
        ("limitExclusive", "LimitExclusive"),
    ];
    for (field, property) in numbers {
        // Both stand for 'not known'.
        if let Some(Variant::U64(number)) =
            properties.get(property).filter(|v| !matches!(v, Variant::U64(0 | u64::MAX)))
        {
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
    let call = context.call("GetImageOSRelease", &name)?;
    let details = [("image", name), ("verb", "list")];
    let allowed = context.daemon.authorise(&call, "org.freedesktop.machine1.inspect-images", &details).await;
    allowed.map_err(|e| Refusal::translate(&e, context.interface))?;
    let accept = |refusal: Refusal| if metadata == Metadata::Graceful { Ok(()) } else { Err(refusal) };
    match context.ask::<_, String>("GetImageHostname", &name).await {
        Ok(hostname) if hostname.is_empty() => {}
        Ok(hostname) => drop(fields.insert("hostname".into(), json!(hostname))),
        Err(refusal) => accept(refusal)?,
    }
    match context.ask::<_, Vec<u8>>("GetImageMachineID", &name).await {
        Ok(id) if id.is_empty() || id.iter().all(|b| *b == 0) => {}
        Ok(id) => {
            let text: String = id.iter().map(|b| format!("{b:02x}")).collect();
            fields.insert("machineId".into(), json!(text));
        }
        Err(refusal) => accept(refusal)?,
    }
    for (field, member) in [("machineInfo", "GetImageMachineInfo"), ("OSRelease", "GetImageOSRelease")] {
        match context.ask::<_, BTreeMap<String, String>>(member, &name).await {
            Ok(values) if values.is_empty() => {}
            Ok(values) => drop(fields.insert(field.into(), pairs(&values))),
            Err(refusal) => accept(refusal)?,
        }
    }
    Ok(())
}
