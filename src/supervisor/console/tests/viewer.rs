//! Who gets the output, and what happens to those who do not take it.

use super::*;

#[test]
fn output_reaches_stdout_the_log_and_every_viewer() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 1 << 20).unwrap();
    let (local, stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), Some(log));
    let (one, two) = (rig.viewer(), rig.viewer());
    rig.slave.write_all(b"login: ").unwrap();
    let (mut seen, mut seen_one, mut seen_two) = (Vec::new(), Vec::new(), Vec::new());
    rig.run(|_| {
        read_now(&stdout, &mut seen);
        viewer_data(&one, &mut seen_one);
        viewer_data(&two, &mut seen_two);
        [&seen, &seen_one, &seen_two].iter().all(|s| s.as_slice() == b"login: ")
    });
    assert_eq!(std::fs::read(dir.path().join("console.log")).unwrap(), b"login: ");
    // One who comes later sees the prompt, too.
    let late = rig.viewer();
    assert_eq!(message(&late), Some((b'd', b"login: ".to_vec())));
}

#[test]
fn a_late_viewer_sees_whole_lines_of_the_last_4_kib() {
    let mut recent = Recent::default();
    assert_eq!(recent.message(), None);
    for number in 0..1000 {
        recent.push(format!("line {number:05}\n").as_bytes());
    }
    let shown = String::from_utf8(recent.message().unwrap()).unwrap();
    assert!(shown.starts_with("dline ") && shown.ends_with("line 00999\n"), "{shown}");
    assert!((4000..=4097).contains(&shown.len()));
    recent.push(&[b'x'; 10_000]);
    assert_eq!(recent.message().unwrap().len(), 4097);
}

#[test]
fn a_slow_viewer_is_dropped_and_the_others_lose_nothing() {
    let mut rig = Rig::new(None, None);
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let (slow, fast) = (rig.viewer(), rig.viewer());
    let sent = noise(2 << 20);
    let (mut at, mut seen) = (0, Vec::new());
    rig.run(|rig| {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
        viewer_data(&fast, &mut seen);
        seen.len() == sent.len()
    });
    assert!(seen == sent);
    let mut got = Vec::new();
    let mut reason = None;
    rig.run(|_| {
        while let Some((kind, body)) = message(&slow) {
            if kind == b'd' { got.extend(body) } else { reason = Some(String::from_utf8(body).unwrap()) }
        }
        reason.is_some()
    });
    assert_eq!(reason.as_deref(), Some("the viewer is too slow"));
    assert!(got.len() < sent.len() && sent.starts_with(&got));
    assert_eq!(rig.console.viewers.len(), 1);
}

#[test]
fn a_viewer_that_lags_behind_less_than_its_backlog_gets_everything() {
    let mut rig = Rig::new(None, None);
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let viewer = rig.viewer();
    let sent = noise(300 << 10);
    let mut at = 0;
    rig.run(|rig| {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
        at == sent.len()
    });
    rig.settle();
    assert!(rig.console.viewers[0].is_behind(), "the socket took it all, so this shows nothing");
    let mut seen = Vec::new();
    rig.run(|_| {
        viewer_data(&viewer, &mut seen);
        seen.len() == sent.len()
    });
    assert!(seen == sent);
}
