//! A rule as a program: the arithmetic of [`Rule::update`](super::Rule), written down instead of done.
//!
//! A rule is generic over the type that it computes in, so it can also be run on [`Symbol`]s, numbers that are not known
//! yet. What it does to them is a straight line of operations, from which other machines' kernels are made: the math is
//! written once, in the rule.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::float::{Element, Real};

/// One operation; operands are the numbers of earlier ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// The parameter, widened.
    Param,
    /// The gradient, widened and prepared.
    Gradient,
    /// The state array of that number.
    State(usize),
    /// A scalar of the step, by its number in [`Program::constants`].
    Constant(usize),
    /// 0
    Zero,
    /// 1
    One,
    /// An operation on one number.
    Unary(&'static str, usize),
    /// An operation on two numbers.
    Binary(&'static str, usize, usize),
}

impl Op {
    fn operands(&self) -> impl Iterator<Item = usize> {
        let both = match *self {
            Op::Unary(_, a) => [Some(a), None],
            Op::Binary(_, a, b) => [Some(a), Some(b)],
            _ => [None, None],
        };
        both.into_iter().flatten()
    }
}

/// A straight line of operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// In the order in which they are done.
    pub ops: Vec<Op>,
    /// The numbers of the operations that give the results.
    pub outputs: Vec<usize>,
    /// Each is rounded once to the type that is computed in.
    pub constants: Vec<f64>,
}

/// A number that is not known yet: that of the operation that gives it.
#[derive(Clone, Copy, Debug)]
pub struct Symbol(u32);

#[derive(Default)]
struct Recorder {
    ops: Vec<Op>,
    constants: Vec<f64>,
    /// Something was asked of a symbol that only a number can answer.
    failed: bool,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::new(Recorder::default());
}

fn record(op: Op) -> Symbol {
    RECORDER.with_borrow_mut(|recorder| {
        recorder.ops.push(op);
        Symbol((recorder.ops.len() - 1) as u32)
    })
}

fn fail() {
    RECORDER.with_borrow_mut(|recorder| recorder.failed = true);
}

impl Symbol {
    fn unary(self, name: &'static str) -> Symbol {
        record(Op::Unary(name, self.0 as usize))
    }

    fn binary(self, name: &'static str, other: Symbol) -> Symbol {
        record(Op::Binary(name, self.0 as usize, other.0 as usize))
    }
}

/// The program of what `f` does to parameter, gradient and states; its results are the outputs.
///
/// `None` if `f` compares numbers, or asks for their values: what it does is then no straight line.
pub fn trace<const N: usize>(f: impl FnOnce(Symbol, Symbol, [Symbol; N]) -> Vec<Symbol>) -> Option<Program> {
    // The first two are `ZERO` and `ONE`, which are constants of the type.
    RECORDER.set(Recorder { ops: vec![Op::Zero, Op::One], ..Recorder::default() });
    let (p, g) = (record(Op::Param), record(Op::Gradient));
    let outputs = f(p, g, std::array::from_fn(|k| record(Op::State(k))));
    let Recorder { ops, constants, failed } = RECORDER.take();
    (!failed).then(|| pruned(&ops, &constants, &outputs))
}

/// Without what no output needs.
fn pruned(ops: &[Op], constants: &[f64], outputs: &[Symbol]) -> Program {
    let mut needed = vec![false; ops.len()];
    for output in outputs {
        needed[output.0 as usize] = true;
    }
    for i in (0..ops.len()).rev() {
        if needed[i] {
            ops[i].operands().for_each(|operand| needed[operand] = true);
        }
    }
    let mut program = Program::default();
    let mut moved = vec![0; ops.len()];
    for (i, &op) in ops.iter().enumerate().filter(|&(i, _)| needed[i]) {
        moved[i] = program.ops.len();
        program.ops.push(match op {
            Op::Constant(k) => {
                program.constants.push(constants[k]);
                Op::Constant(program.constants.len() - 1)
            }
            Op::Unary(name, a) => Op::Unary(name, moved[a]),
            Op::Binary(name, a, b) => Op::Binary(name, moved[a], moved[b]),
            other => other,
        });
    }
    program.outputs = outputs.iter().map(|output| moved[output.0 as usize]).collect();
    program
}

macro_rules! operator {
    ($trait:ident, $method:ident, $name:literal) => {
        impl $trait for Symbol {
            type Output = Symbol;
            fn $method(self, other: Symbol) -> Symbol {
                self.binary($name, other)
            }
        }
    };
}
operator!(Add, add, "add");
operator!(Sub, sub, "sub");
operator!(Div, div, "div");

impl Mul for Symbol {
    type Output = Symbol;
    fn mul(self, other: Symbol) -> Symbol {
        // Times 1 is exact.
        match (self.0, other.0) {
            (_, ONE) => self,
            (ONE, _) => other,
            _ => self.binary("mul", other),
        }
    }
}

const ONE: u32 = 1;

impl Neg for Symbol {
    type Output = Symbol;
    fn neg(self) -> Symbol {
        self.unary("neg")
    }
}

impl Default for Symbol {
    fn default() -> Symbol {
        Symbol::ZERO
    }
}

impl PartialEq for Symbol {
    fn eq(&self, _other: &Symbol) -> bool {
        fail();
        false
    }
}

impl PartialOrd for Symbol {
    fn partial_cmp(&self, _other: &Symbol) -> Option<Ordering> {
        fail();
        None
    }
}

impl Element for Symbol {
    type Acc = Symbol;
    type Bits = u32;
    fn from_bits(bits: u32) -> Symbol {
        Symbol(bits)
    }
    fn to_bits(self) -> u32 {
        fail();
        self.0
    }
    fn widen(self) -> Symbol {
        self
    }
    fn narrow(x: Symbol) -> Symbol {
        x
    }
}

impl Real for Symbol {
    const ZERO: Symbol = Symbol(0);
    const ONE: Symbol = Symbol(ONE);

    fn from_f64(x: f64) -> Symbol {
        let k = RECORDER.with_borrow_mut(|recorder| {
            recorder.constants.push(x);
            recorder.constants.len() - 1
        });
        record(Op::Constant(k))
    }
    fn to_f64(self) -> f64 {
        fail();
        f64::NAN
    }
    fn sqrt(self) -> Symbol {
        self.unary("sqrt")
    }
    fn abs(self) -> Symbol {
        self.unary("abs")
    }
    fn powers_of_two(shifted_k: Symbol, _shifted_h: Symbol, _shift: Symbol) -> [Symbol; 2] {
        fail();
        [shifted_k; 2]
    }
    fn maximum(self, other: Symbol) -> Symbol {
        self.binary("maximum", other)
    }
    fn sign(self) -> Symbol {
        self.unary("sign")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_was_done_and_no_more() {
        let program = trace(|p, g, [m]: [Symbol; 1]| {
            let (half, _unused) = (Symbol::from_f64(0.5), Symbol::from_f64(3.0));
            let lr = Symbol::from_f64(0.1);
            let m = half * m + g * Symbol::ONE;
            vec![p - lr * m.sign(), m]
        });
        let expected = Program {
            ops: vec![
                Op::Param,
                Op::Gradient,
                Op::State(0),
                Op::Constant(0),
                Op::Constant(1),
                Op::Binary("mul", 3, 2),
                Op::Binary("add", 5, 1),
                Op::Unary("sign", 6),
                Op::Binary("mul", 4, 7),
                Op::Binary("sub", 0, 8),
            ],
            outputs: vec![9, 6],
            constants: vec![0.5, 0.1],
        };
        assert_eq!(program, Some(expected));
    }

    #[test]
    fn a_branch_on_a_number_is_no_program() {
        assert_eq!(trace(|p, g, []| vec![if p > g { p } else { g }]), None);
        assert_eq!(trace(|p, _, []| vec![Symbol::from_f64(p.to_f64())]), None);
    }
}
