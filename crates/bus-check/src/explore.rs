//! Visits every state that a model can get into, breadth first, so that the first way to a bad one is a shortest one.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
};

/// A system whose steps are the actions of everyone in it, in any order.
pub trait Model {
    /// Everything that decides what can happen next.
    type State: Clone + Eq + Hash;
    /// One indivisible step.
    type Action: Clone + fmt::Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// What may happen next.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    /// What it leads to.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Self::State;
    /// The promise that this state breaks, if any.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether everything has come to its end; from every state there must be a way to such a one.
    fn has_ended(&self, state: &Self::State) -> bool;
    /// Whether the way to the end may rely on this step; not on what only a lucky or dead client would do.
    fn is_reliable(&self, state: &Self::State, action: &Self::Action) -> bool;
}

/// What was visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Longest of the shortest ways.
    pub depth: usize,
}

/// A shortest way to a state that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterexample {
    /// The promise.
    pub broken: &'static str,
    /// The steps, from the start.
    pub steps: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} after", self.broken)?;
        self.steps.iter().enumerate().try_for_each(|(number, step)| write!(formatter, "\n  {}. {step}", number + 1))
    }
}

/// The promise that every state can still come to a good end.
const NO_WAY_TO_THE_END: &str = "no way to the end";

struct Visit<A> {
    /// How each state was first reached; the start has none.
    came_by: Vec<Option<(usize, A)>>,
    depth: Vec<usize>,
    /// Reliable steps, backwards: for each state those that lead to it.
    before: Vec<Vec<usize>>,
    ends: Vec<usize>,
    steps: usize,
}

/// Visits all states.
///
/// # Errors
/// The first broken promise that is found.
pub fn explore<M: Model>(model: &M) -> Result<Explored, Counterexample> {
    let mut visit = Visit { came_by: vec![None], depth: vec![0], before: vec![Vec::new()], ends: Vec::new(), steps: 0 };
    let start = model.start();
    let mut numbers = HashMap::from([(start.clone(), 0)]);
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((number, state)) = queue.pop_front() {
        if let Some(broken) = model.broken(&state) {
            return Err(visit.counterexample(broken, number));
        }
        if model.has_ended(&state) {
            visit.ends.push(number);
        }
        for action in model.actions(&state) {
            let next = model.next(&state, &action);
            visit.steps += 1;
            let fresh = visit.came_by.len();
            let next_number = *numbers.entry(next.clone()).or_insert(fresh);
            if next_number == fresh {
                visit.came_by.push(Some((number, action.clone())));
                visit.depth.push(visit.depth[number] + 1);
                visit.before.push(Vec::new());
                queue.push_back((fresh, next));
            }
            if model.is_reliable(&state, &action) {
                visit.before[next_number].push(number);
            }
        }
    }
    visit.finish()
}

impl<A: Clone + fmt::Debug> Visit<A> {
    fn finish(self) -> Result<Explored, Counterexample> {
        let mut is_safe = vec![false; self.came_by.len()];
        let mut safe: Vec<usize> = self.ends.clone();
        while let Some(number) = safe.pop() {
            if !std::mem::replace(&mut is_safe[number], true) {
                safe.extend(self.before[number].iter().filter(|before| !is_safe[**before]));
            }
        }
        if let Some(stuck) = is_safe.iter().position(|is_safe| !is_safe) {
            return Err(self.counterexample(NO_WAY_TO_THE_END, stuck));
        }
        let depth = self.depth.iter().copied().max().unwrap_or(0);
        Ok(Explored { states: self.came_by.len(), steps: self.steps, depth })
    }

    fn counterexample(&self, broken: &'static str, mut number: usize) -> Counterexample {
        let mut steps = Vec::new();
        while let Some((before, action)) = &self.came_by[number] {
            steps.push(format!("{action:?}"));
            number = *before;
        }
        steps.reverse();
        Counterexample { broken, steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up to five by ones and twos; may get stuck at three.
    struct Counting {
        forbidden: u8,
        sticks: bool,
    }

    impl Model for Counting {
        type State = u8;
        type Action = u8;

        fn start(&self) -> u8 {
            0
        }

        fn actions(&self, state: &u8) -> Vec<u8> {
            if self.sticks && *state == 3 { Vec::new() } else { (1..=2).filter(|by| state + by <= 5).collect() }
        }

        fn next(&self, state: &u8, by: &u8) -> u8 {
            state + by
        }

        fn broken(&self, state: &u8) -> Option<&'static str> {
            (*state == self.forbidden).then_some("forbidden")
        }

        fn has_ended(&self, state: &u8) -> bool {
            *state == 5
        }

        fn is_reliable(&self, _: &u8, _: &u8) -> bool {
            true
        }
    }

    #[test]
    fn every_state_is_visited_and_the_shortest_way_is_shown() {
        let all = explore(&Counting { forbidden: 9, sticks: false });
        assert_eq!(all, Ok(Explored { states: 6, steps: 9, depth: 3 }));
        let bad = explore(&Counting { forbidden: 4, sticks: false }).unwrap_err();
        assert_eq!((bad.broken, bad.steps), ("forbidden", vec!["2".to_owned(), "2".to_owned()]));
    }

    #[test]
    fn state_without_a_way_to_the_end_is_found() {
        let stuck = explore(&Counting { forbidden: 9, sticks: true }).unwrap_err();
        assert_eq!((stuck.broken, stuck.steps.len()), (NO_WAY_TO_THE_END, 2));
    }
}
