//! Problems found in files, each with the place it is at, and how they look on a terminal.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Origin, Padding, Renderer, Snippet};

/// Most problems one error shows; a file with more is not a machine file.
const MAX_SHOWN: usize = 50;

/// One file that was read, kept so that problems can quote it.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
    line_starts: Vec<usize>,
}

impl SourceFile {
    fn new(path: PathBuf, text: String) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, text, line_starts }
    }

    /// Line of a byte, counted from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// The whole lines that a span touches, without the last line end, and where they begin.
    fn lines(&self, span: &Range<usize>) -> (usize, &str) {
        let start = self.line_starts[self.line(span.start) - 1];
        let end = self.line_starts.get(self.line(span.end)).map_or(self.text.len(), |next| next - 1);
        (start, &self.text[start..end])
    }
}

/// Where a value was set: a file and the bytes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Place {
    pub(super) fn new(file: usize, span: Range<usize>) -> Self {
        Self { file, start: span.start, end: span.end }
    }
}

/// A quoted piece of a file; without a span the file as a whole.
#[derive(Debug, Clone)]
struct Label {
    source: Arc<SourceFile>,
    span: Option<Range<usize>>,
    text: String,
}

/// One problem of one definition.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    message: String,
    labels: Vec<Label>,
    notes: Vec<String>,
    hint: Option<String>,
}

impl Diagnostic {
    /// Adds under the caret what would have been right.
    pub(super) fn label(&mut self, text: impl Into<String>) -> &mut Self {
        self.labels[0].text = text.into();
        self
    }

    /// Adds what else one should know, in one line.
    pub(super) fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(text.into());
        self
    }

    /// Ends the problem with something the user can do.
    pub(super) fn hint(&mut self, text: impl Into<String>) -> &mut Self {
        self.hint = Some(text.into());
        self
    }

    /// Replaces the problem's own line.
    pub(super) fn say(&mut self, message: impl Into<String>) {
        self.message = message.into();
    }

    /// Quotes the place of another problem, too.
    pub(super) fn also(&mut self, other: &Self, text: impl Into<String>) {
        let text = text.into();
        self.labels.extend(other.labels.first().map(|label| Label { text, ..label.clone() }));
    }

    /// The problem in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The file it is in.
    pub fn path(&self) -> &Path {
        &self.labels[0].source.path
    }

    /// Line in that file, counted from 1; 0 when the problem is something missing from the whole file.
    pub fn line(&self) -> usize {
        let label = &self.labels[0];
        label.span.as_ref().map_or(0, |span| label.source.line(span.start))
    }

    /// Draws the problem with the lines it is about; colour only on request.
    pub fn render(&self, color: bool) -> String {
        let mut group = Level::ERROR.primary_title(&*self.message).elements(Vec::<Origin<'_>>::new());
        let mut labels = self.labels.iter().peekable();
        let mut kind = AnnotationKind::Primary;
        while let Some(label) = labels.next() {
            let path = label.source.path.to_string_lossy();
            let Some(span) = &label.span else {
                group = group.element(Origin::path(path)).element(Padding);
                continue;
            };
            let mut shown = vec![(span, &label.text, kind)];
            kind = AnnotationKind::Context;
            while let Some(next) = labels.next_if(|next| Arc::ptr_eq(&next.source, &label.source)) {
                shown.extend(next.span.as_ref().map(|span| (span, &next.text, kind)));
            }
            let all = shown.iter().fold((*span).clone(), |all, (s, ..)| all.start.min(s.start)..all.end.max(s.end));
            let (start, text) = label.source.lines(&all);
            let snippet = Snippet::source(text).path(path).line_start(label.source.line(start)).fold(true);
            group = group.element(snippet.annotations(shown.into_iter().map(|(span, text, kind)| {
                let note = (!text.is_empty()).then_some(&**text);
                kind.span(span.start - start..span.end - start).label(note)
            })));
        }
        group = group.elements(self.notes.iter().map(|note| Level::NOTE.message(&**note)));
        group = group.elements(self.hint.iter().map(|hint| Level::HELP.with_name("hint").message(&**hint)));
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Draws many problems, an empty line between two, and states how many more there are.
pub(super) fn render_all(diagnostics: &[Diagnostic], color: bool) -> String {
    let mut shown: Vec<String> = diagnostics.iter().take(MAX_SHOWN).map(|d| d.render(color)).collect();
    if let Some(more) = diagnostics.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        shown.push(format!("error: {more} more problems are not shown"));
    }
    shown.join("\n\n")
}

/// Draws an error that is about no line of a file.
pub(super) fn render_plain(message: &str, notes: &[String], hint: Option<&str>, color: bool) -> String {
    let notes = notes.iter().map(|note| Level::NOTE.message(&**note));
    let hint = hint.map(|hint| Level::HELP.with_name("hint").message(hint));
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    renderer.render(&[Level::ERROR.primary_title(message).elements(notes.chain(hint))])
}

/// The files read so far and every problem found in them.
#[derive(Debug, Default)]
pub(super) struct Problems {
    files: Vec<Arc<SourceFile>>,
    found: Vec<(Place, Diagnostic)>,
}

impl Problems {
    /// Keeps a file for quoting; the number stands for it in a [`Place`].
    pub(super) fn add_file(&mut self, path: PathBuf, text: String) -> usize {
        self.files.push(Arc::new(SourceFile::new(path, text)));
        self.files.len() - 1
    }

    pub(super) fn file(&self, file: usize) -> &Arc<SourceFile> {
        &self.files[file]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Records a problem of the marked bytes.
    pub(super) fn report(&mut self, place: Place, message: impl Into<String>) -> &mut Diagnostic {
        let label = self.quote(place, String::new());
        self.push(place, message.into(), vec![label])
    }

    /// Records a clash of a value with an earlier one.
    pub(super) fn clash(
        &mut self,
        place: Place,
        message: impl Into<String>,
        earlier: Option<Place>,
        text: &str,
    ) -> &mut Diagnostic {
        let first = self.quote(place, String::new());
        let second = earlier.map(|earlier| self.quote(earlier, text.to_owned()));
        self.push(place, message.into(), std::iter::once(first).chain(second).collect())
    }

    /// A problem of the marked bytes that is not recorded.
    pub(super) fn quoting(&self, place: Place, message: String) -> Diagnostic {
        Diagnostic { message, labels: vec![self.quote(place, String::new())], notes: Vec::new(), hint: None }
    }

    /// Records that something is missing from a file as a whole.
    pub(super) fn report_file(&mut self, file: usize, message: impl Into<String>) -> &mut Diagnostic {
        let label = Label { source: Arc::clone(&self.files[file]), span: None, text: String::new() };
        self.push(Place::new(file, 0..0), message.into(), vec![label])
    }

    fn quote(&self, place: Place, text: String) -> Label {
        Label { source: Arc::clone(&self.files[place.file]), span: Some(place.start..place.end), text }
    }

    fn push(&mut self, place: Place, message: String, labels: Vec<Label>) -> &mut Diagnostic {
        self.found.push((place, Diagnostic { message, labels, notes: Vec::new(), hint: None }));
        let last = self.found.len() - 1;
        &mut self.found[last].1
    }

    /// Forgets problems found since `mark` on these lines of a file, which were reported already.
    pub(super) fn forget_on_lines(&mut self, file: usize, mark: usize, lines: &[usize]) {
        let source = &self.files[file];
        let mut index = 0;
        self.found.retain(|(at, _)| {
            index += 1;
            index <= mark || !lines.contains(&source.line(at.start))
        });
    }

    /// Number of problems so far.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    /// All problems, by file in the order of reading, then by place.
    pub(super) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(place, _)| *place);
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }
}

/// What a user wrote, fit for one line of output.
pub(super) fn escaped(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

/// The same in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", escaped(text))
}

/// The candidate a misspelt word most likely means.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> (Problems, impl Fn(&str) -> Place) {
        let mut problems = Problems::default();
        let file = problems.add_file("web.toml".into(), text.to_owned());
        let text = text.to_owned();
        let place = move |piece: &str| {
            let start = text.find(piece).expect("a piece of the text");
            Place::new(file, start..start + piece.len())
        };
        (problems, place)
    }

    #[test]
    fn problems_come_in_the_order_of_the_file() {
        let (mut problems, place) = problems("a = 1\nb = 2\nc = 3\n");
        problems.report(place("c"), "third");
        problems.report(place("a"), "first");
        problems.report(place("b"), "second");
        let found = problems.into_diagnostics();
        let found: Vec<(usize, &str)> = found.iter().map(|problem| (problem.line(), problem.message())).collect();
        assert_eq!(found, [(1, "first"), (2, "second"), (3, "third")]);
    }

    #[test]
    fn a_problem_is_drawn_with_its_line_and_hint() {
        let (mut problems, place) = problems("\n\nkye = 1 # why\n");
        problems.report(place("kye"), "unknown key `kye`").label("expected `key`").note("a note").hint("write `key`");
        let expected = "\
error: unknown key `kye`
 --> web.toml:3:1
  |
3 | kye = 1 # why
  | ^^^ expected `key`
  |
  = note: a note
  = hint: write `key`";
        let found = problems.into_diagnostics();
        assert_eq!(render_all(&found, false), expected);
        let colored = render_all(&found, true);
        assert!(colored.contains("\x1b["));
        let mut plain = String::new();
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once("\x1b[") {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        assert_eq!(plain + rest, expected, "colour changes no letter");
    }

    #[test]
    fn control_characters_of_a_file_never_reach_the_terminal() {
        let (mut problems, place) = problems("a = \"\x1b[31mred\x07\u{202e}\"\n");
        problems.report(place("\x1b"), format!("bad {}", quoted("\x1b[31m\u{202e}")));
        let text = render_all(&problems.into_diagnostics(), false);
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn only_so_many_problems_are_drawn() {
        let (mut problems, place) = problems("a = 1\n");
        for _ in 0..MAX_SHOWN + 7 {
            problems.report(place("a"), "again");
        }
        let text = render_all(&problems.into_diagnostics(), false);
        assert_eq!(text.matches("error: again").count(), MAX_SHOWN);
        assert!(text.ends_with("\n\nerror: 7 more problems are not shown"));
    }

    #[test]
    fn the_end_of_a_file_can_be_quoted() {
        for text in ["", "a = 1", "a = 1\n", "a = 1\r\n"] {
            let (mut problems, _) = problems(text);
            problems.report(Place::new(0, text.len()..text.len()), "ends here");
            assert!(render_all(&problems.into_diagnostics(), false).starts_with("error: ends here\n --> web.toml:"));
        }
    }

    #[test]
    fn the_nearest_word_is_one_that_could_be_meant() {
        let words = ["target", "source", "read-only"];
        assert_eq!(nearest("traget", words), Some("target"));
        assert_eq!(nearest("READ_ONLY", words), Some("read-only"));
        assert_eq!(nearest("volume", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"target".repeat(20), words), None);
    }
}
