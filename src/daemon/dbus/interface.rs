//! The D-Bus interfaces as data: what is checked before a method runs, and what introspection shows.
//!
//! One line a member, in words that are easy to compare with the interface they were recorded from:
//!
//! ```text
//! method Name sig:argument … > sig:result …
//! property Name sig const|false [write]
//! signal Name sig:argument …
//! ```

use std::fmt::Write as _;
use std::sync::LazyLock;

/// A named value of a method or a signal.
#[derive(Debug)]
pub(crate) struct Argument {
    pub(crate) signature: &'static str,
    pub(crate) name: &'static str,
}

/// A method with what it takes and gives.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    inputs: Vec<Argument>,
    outputs: Vec<Argument>,
}

impl Method {
    /// The signature of all that it takes.
    pub(crate) fn takes(&self) -> String {
        self.inputs.iter().map(|a| a.signature).collect()
    }
}

/// A property that can be read.
#[derive(Debug)]
pub(crate) struct Property {
    pub(crate) name: &'static str,
    signature: &'static str,
    emits: &'static str,
    access: &'static str,
}

/// One interface.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) name: &'static str,
    pub(crate) methods: Vec<Method>,
    pub(crate) properties: Vec<Property>,
    signals: Vec<(&'static str, Vec<Argument>)>,
}

impl Interface {
    /// Reads the lines described above; only called on text of this program.
    pub(crate) fn parse(name: &'static str, text: &'static str) -> Self {
        let mut interface = Self { name, methods: Vec::new(), properties: Vec::new(), signals: Vec::new() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(kind), Some(name)) = (words.next(), words.next()) else { continue };
            match kind {
                "method" => {
                    let inputs = words.by_ref().take_while(|w| *w != ">").map(argument).collect();
                    interface.methods.push(Method { name, inputs, outputs: words.map(argument).collect() });
                }
                "property" => {
                    let (signature, emits) = (words.next().unwrap_or("s"), words.next().unwrap_or("false"));
                    let access = if words.next() == Some("write") { "readwrite" } else { "read" };
                    interface.properties.push(Property { name, signature, emits, access });
                }
                _ => interface.signals.push((name, words.map(argument).collect())),
            }
        }
        interface
    }

    /// The method of that name.
    pub(crate) fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|m| m.name == name)
    }

    /// Adds itself to an introspection text.
    pub(crate) fn write(&self, xml: &mut String) {
        let _ = writeln!(xml, " <interface name=\"{}\">", self.name);
        for property in &self.properties {
            let _ = writeln!(
                xml,
                "  <property name=\"{}\" type=\"{}\" access=\"{}\">\n   <annotation \
                 name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"{}\"/>\n  </property>",
                property.name, property.signature, property.access, property.emits
            );
        }
        for method in &self.methods {
            let _ = writeln!(xml, "  <method name=\"{}\">", method.name);
            for (arguments, direction) in [(&method.inputs, "in"), (&method.outputs, "out")] {
                for argument in arguments {
                    let Argument { signature, name } = argument;
                    let _ = writeln!(xml, "   <arg type=\"{signature}\" name=\"{name}\" direction=\"{direction}\"/>");
                }
            }
            xml.push_str("  </method>\n");
        }
        for (name, arguments) in &self.signals {
            let _ = writeln!(xml, "  <signal name=\"{name}\">");
            for Argument { signature, name } in arguments {
                let _ = writeln!(xml, "   <arg type=\"{signature}\" name=\"{name}\"/>");
            }
            xml.push_str("  </signal>\n");
        }
        xml.push_str(" </interface>\n");
    }
}

fn argument(word: &'static str) -> Argument {
    let (signature, name) = word.split_once(':').unwrap_or((word, ""));
    Argument { signature, name }
}

/// A whole introspection text of an object with these interfaces and children.
pub(crate) fn introspection<'a>(interfaces: &[&Interface], children: impl Iterator<Item = &'a str>) -> String {
    let mut xml = String::from(
        "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n\
         \"https://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n",
    );
    for interface in STANDARD.iter().chain(interfaces.iter().copied()) {
        interface.write(&mut xml);
    }
    for child in children {
        let _ = writeln!(xml, " <node name=\"{child}\"/>");
    }
    xml.push_str("</node>\n");
    xml
}

/// Names of the three interfaces that every object has.
pub(crate) const PEER: &str = "org.freedesktop.DBus.Peer";
/// See [`PEER`].
pub(crate) const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
/// See [`PEER`].
pub(crate) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What every object has.
pub(crate) static STANDARD: LazyLock<[Interface; 3]> = LazyLock::new(|| {
    [
        Interface::parse(PEER, "method Ping >\nmethod GetMachineId > s:machine_uuid"),
        Interface::parse(INTROSPECTABLE, "method Introspect > s:xml_data"),
        Interface::parse(
            PROPERTIES,
            "method Get s:interface_name s:property_name > v:value
             method GetAll s:interface_name > a{sv}:props
             method Set s:interface_name s:property_name v:value >
             signal PropertiesChanged s:interface_name a{sv}:changed_properties as:invalidated_properties",
        ),
    ]
});

/// `org.freedesktop.machine1.Manager` of systemd 257, and what came up to 262.
pub(crate) static MANAGER: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.machine1.Manager",
        "property PoolPath s false
         property PoolUsage t false
         property PoolLimit t false
         method GetMachine s:name > o:machine
         method GetImage s:name > o:image
         method GetMachineByPID u:pid > o:machine
         method ListMachines > a(ssso):machines
         method ListImages > a(ssbttto):images
         method CreateMachine s:name ay:id s:service s:class u:leader s:root_directory a(sv):scope_properties > o:path
         method CreateMachineWithNetwork s:name ay:id s:service s:class u:leader s:root_directory ai:ifindices \
             a(sv):scope_properties > o:path
         method CreateMachineEx s:name a(sv):properties a(sv):scope_properties > o:path
         method RegisterMachine s:name ay:id s:service s:class u:leader s:root_directory > o:path
         method RegisterMachineWithNetwork s:name ay:id s:service s:class u:leader s:root_directory ai:ifindices > o:path
         method RegisterMachineEx s:name a(sv):properties > o:path
         method UnregisterMachine s:name >
         method TerminateMachine s:id >
         method KillMachine s:name s:whom i:signal >
         method GetMachineAddresses s:name > a(iay):addresses
         method GetMachineSSHInfo s:name > s:ssh_address s:ssh_private_key_path
         method GetMachineOSRelease s:name > a{ss}:fields
         method OpenMachinePTY s:name > h:pty s:pty_path
         method OpenMachineLogin s:name > h:pty s:pty_path
         method OpenMachineShell s:name s:user s:path as:args as:environment > h:pty s:pty_path
         method BindMountMachine s:name s:source s:destination b:read_only b:mkdir >
         method CopyFromMachine s:name s:source s:destination >
         method CopyToMachine s:name s:source s:destination >
         method CopyFromMachineWithFlags s:name s:source s:destination t:flags >
         method CopyToMachineWithFlags s:name s:source s:destination t:flags >
         method OpenMachineRootDirectory s:name > h:fd
         method GetMachineUIDShift s:name > u:shift
         method RemoveImage s:name >
         method RenameImage s:name s:new_name >
         method CloneImage s:name s:new_name b:read_only >
         method MarkImageReadOnly s:name b:read_only >
         method GetImageHostname s:name > s:hostname
         method GetImageMachineID s:name > ay:id
         method GetImageMachineInfo s:name > a{ss}:machine_info
         method GetImageOSRelease s:name > a{ss}:os_release
         method SetPoolLimit t:size >
         method SetImageLimit s:name t:size >
         method CleanPool s:mode > a(st):images
         method MapFromMachineUser s:name u:uid_inner > u:uid_outer
         method MapToMachineUser u:uid_outer > s:machine_name o:machine_path u:uid_inner
         method MapFromMachineGroup s:name u:gid_inner > u:gid_outer
         method MapToMachineGroup u:gid_outer > s:machine_name o:machine_path u:gid_inner
         signal MachineNew s:machine o:path
         signal MachineRemoved s:machine o:path",
    )
});

/// `org.freedesktop.machine1.Machine`, with the properties of 258.
pub(crate) static MACHINE: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.machine1.Machine",
        "property Name s const
         property Id ay const
         property Timestamp t const
         property TimestampMonotonic t const
         property Service s const
         property Unit s const
         property Subgroup s const
         property Leader u const
         property LeaderPIDFDId t const
         property Supervisor u const
         property SupervisorPIDFDId t const
         property Class s const
         property RootDirectory s const
         property NetworkInterfaces ai const
         property VSockCID u const
         property SSHAddress s const
         property SSHPrivateKeyPath s const
         property State s false
         property UID u const
         method Terminate >
         method Kill s:whom i:signal >
         method GetAddresses > a(iay):addresses
         method GetSSHInfo > s:ssh_address s:ssh_private_key_path
         method GetOSRelease > a{ss}:fields
         method GetUIDShift > u:shift
         method OpenPTY > h:pty s:pty_path
         method OpenLogin > h:pty s:pty_path
         method OpenShell s:user s:path as:args as:environment > h:pty s:pty_path
         method BindMount s:source s:destination b:read_only b:mkdir >
         method CopyFrom s:source s:destination >
         method CopyTo s:source s:destination >
         method CopyFromWithFlags s:source s:destination t:flags >
         method CopyToWithFlags s:source s:destination t:flags >
         method OpenRootDirectory > h:fd",
    )
});

/// `org.freedesktop.machine1.Image`.
pub(crate) static IMAGE: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.machine1.Image",
        "property Name s false
         property Path s false
         property Type s false
         property ReadOnly b false
         property CreationTimestamp t false
         property ModificationTimestamp t false
         property Usage t false
         property Limit t false
         property UsageExclusive t false
         property LimitExclusive t false
         method Remove >
         method Rename s:new_name >
         method Clone s:new_name b:read_only >
         method MarkReadOnly b:read_only >
         method SetLimit t:limit >
         method GetHostname > s:hostname
         method GetMachineID > ay:machine_id
         method GetMachineInfo > a{ss}:machine_info
         method GetOSRelease > a{ss}:os_release",
    )
});

/// The part of `org.freedesktop.systemd1.Manager` that clients of machined use.
pub(crate) static SYSTEMD: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.systemd1.Manager",
        "property Version s const
         property Features s const
         property Virtualization s const
         property Architecture s const
         property SystemState s false
         method Subscribe >
         method Unsubscribe >
         method GetUnit s:name > o:unit
         method LoadUnit s:name > o:unit
         method GetUnitByPID u:pid > o:unit
         method GetUnitProcesses s:name > a(sus):processes
         method ListUnits > a(ssssssouso):units
         method ListUnitsByNames as:names > a(ssssssouso):units
         method ListUnitsByPatterns as:states as:patterns > a(ssssssouso):units
         method StartUnit s:name s:mode > o:job
         method StopUnit s:name s:mode > o:job
         method RestartUnit s:name s:mode > o:job
         method KillUnit s:name s:whom i:signal >
         method ResetFailedUnit s:name >
         method Reload >
         method GetUnitFileState s:file > s:state
         method EnableUnitFiles as:files b:runtime b:force > b:carries_install_info a(sss):changes
         method DisableUnitFiles as:files b:runtime > a(sss):changes
         signal JobRemoved u:id o:job s:unit s:result",
    )
});

/// The same of `org.freedesktop.systemd1.Unit`.
pub(crate) static UNIT: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.systemd1.Unit",
        "property Id s const
         property Names as const
         property Following s false
         property Description s const
         property LoadState s const
         property ActiveState s false
         property SubState s false
         property FreezerState s false
         property FragmentPath s const
         property UnitFileState s false
         property ActiveEnterTimestamp t false
         property StateChangeTimestamp t false
         property NeedDaemonReload b const
         property CanStart b const
         property CanStop b const
         property Job (uo) false
         method Start s:mode > o:job
         method Stop s:mode > o:job
         method Restart s:mode > o:job",
    )
});

/// The same of `org.freedesktop.systemd1.Service`.
pub(crate) static SERVICE: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.systemd1.Service",
        "property Type s const
         property Result s false
         property MainPID u false
         property StatusText s false
         property ControlGroup s false
         property Slice s false
         property Delegate b const
         method GetProcesses > a(sus):processes",
    )
});

/// `org.freedesktop.LogControl1`, as `systemctl service-log-level` uses it.
pub(crate) static LOG_CONTROL: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.freedesktop.LogControl1",
        "property LogLevel s false write
         property LogTarget s false write
         property SyslogIdentifier s false",
    )
});

/// `org.machinist1.Manager`: what machine1 lacks.
pub(crate) static OWN_MANAGER: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.machinist1.Manager",
        "property Version s const
         method ListMachines b:all > aa{sv}:machines
         method GetMachine s:name > a{sv}:machine
         method GetStatistics as:names > aa{sv}:machines
         method Start s:name >
         method Perform s:request > s:report
         method Stop s:name t:timeout_usec > s:remark
         method Restart s:name > s:remark
         method SetLimits s:name as:settings b:save > s:said
         method Reload > a(ss):problems
         method Exec s:name s:user as:command as:environment s:directory t:timeout_usec ah:files > i:status
         signal Event s:machine s:event a{sv}:details",
    )
});

/// `org.machinist1.Machine`.
pub(crate) static OWN_MACHINE: LazyLock<Interface> = LazyLock::new(|| {
    Interface::parse(
        "org.machinist1.Machine",
        "property Name s const
         property State s false
         property Definition s const
         method Get > a{sv}:machine
         method GetStatistics > a{sv}:statistics
         method Start >
         method Stop t:timeout_usec > s:remark
         method Restart > s:remark
         method SetLimits as:settings b:save > s:said
         method Exec s:user as:command as:environment s:directory t:timeout_usec ah:files > i:status",
    )
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_shown_as_it_was_meant() {
        let interface = Interface::parse("a.b", "method M s:x ai:y > h:z\nproperty P t const\nsignal S so:both");
        assert_eq!(interface.method("M").expect("there").takes(), "sai");
        let mut xml = String::new();
        interface.write(&mut xml);
        assert!(xml.contains("<arg type=\"ai\" name=\"y\" direction=\"in\"/>"), "{xml}");
        assert!(xml.contains("<property name=\"P\" type=\"t\" access=\"read\">"), "{xml}");
    }

    /// Members with their types, as `method Name in > out`, out of an interface in XML.
    fn members(xml: &str) -> Vec<String> {
        let attribute = |line: &str, key: &str| {
            let (_, rest) = line.split_once(&format!(" {key}=\""))?;
            rest.split('"').next().map(str::to_owned)
        };
        let mut members: Vec<String> = Vec::new();
        for line in xml.lines().map(str::trim) {
            let name = || attribute(line, "name").expect("a name");
            let signature = || attribute(line, "type").expect("a type");
            let add = |members: &mut Vec<String>, text: &str| members.last_mut().expect("a member").push_str(text);
            if line.starts_with("<method") || line.starts_with("<signal") {
                members.push(format!("{} {}", &line[1..7], name()));
            } else if line.starts_with("<property") {
                let access = attribute(line, "access").expect("access");
                members.push(format!("property {} {} {access}", name(), signature()));
            } else if line.starts_with("<arg") {
                let direction = attribute(line, "direction").unwrap_or_default();
                add(&mut members, &format!(" {direction}:{}", signature()));
            } else if line.contains("EmitsChangedSignal") {
                add(&mut members, &format!(" emits:{}", attribute(line, "value").expect("a value")));
            }
        }
        members
    }

    /// What systemd 257 said of itself (`systemd-machined --bus-introspect=PATH`) is all there, with the same types;
    /// what we have beyond is what later versions brought.
    #[test]
    fn interfaces_equal_the_recorded_ones() {
        const LATER: [(&str, &str); 3] = [
            ("Manager", "CreateMachineEx RegisterMachineEx"),
            ("Machine", "Subgroup LeaderPIDFDId Supervisor SupervisorPIDFDId UID"),
            ("Image", ""),
        ];
        for (interface, recorded, (name, later)) in [
            (&MANAGER, include_str!("../../../tests/data/machine1/manager.xml"), LATER[0]),
            (&MACHINE, include_str!("../../../tests/data/machine1/machine.xml"), LATER[1]),
            (&IMAGE, include_str!("../../../tests/data/machine1/image.xml"), LATER[2]),
        ] {
            let mut xml = String::new();
            interface.write(&mut xml);
            let (ours, recorded) = (members(&xml), members(recorded));
            assert!(recorded.len() > 15, "{name}");
            for member in &recorded {
                assert!(ours.contains(member), "{name} lacks '{member}'");
            }
            let mut beyond: Vec<&str> =
                ours.iter().filter(|m| !recorded.contains(m)).map(|m| m.split(' ').nth(1).expect("a name")).collect();
            beyond.sort_unstable();
            let mut expected: Vec<&str> = later.split_whitespace().collect();
            expected.sort_unstable();
            assert_eq!(beyond, expected, "{name}");
        }
    }
}
