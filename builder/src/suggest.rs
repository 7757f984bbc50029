//! "Did you mean": the nearest of a few known words.

/// The candidate nearest to `word`, if it is near enough to be a likely misspelling.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nothing this long is a misspelling of a keyword, and the distance costs length × length.
    const WORD_BYTES_MAX: usize = 64;
    // More names than this are no hand-written file's, and each costs a comparison.
    const CANDIDATES_MAX: usize = 256;
    if word.is_empty() || word.len() > WORD_BYTES_MAX {
        return None;
    }
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(edits, candidate)| *edits <= allowed(candidate) && *edits < word.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// How many edits still look like a slip of the finger.
fn allowed(candidate: &str) -> usize {
    match candidate.len() {
        0..=2 => 0,
        3..=4 => 1,
        5..=7 => 2,
        _ => 3,
    }
}

/// Edit distance where swapping two neighbours counts as one edit.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut current = vec![i];
        for j in 1..=right.len() {
            let change = usize::from(left[i - 1] != right[j - 1]);
            let mut best = (previous[j - 1] + change).min(previous[j] + 1).min(current[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let words = ["RUN", "COPY", "ENTRYPOINT", "WORKDIR"];
        assert_eq!(nearest("CPOY", words), Some("COPY"));
        assert_eq!(nearest("entrypont", words), Some("ENTRYPOINT"));
        assert_eq!(nearest("RN", words), Some("RUN"));
        assert_eq!(nearest("WORDKIR", words), Some("WORKDIR"));
        assert_eq!(nearest("echo", words), None);
        assert_eq!(nearest("", words), None);
    }
}
