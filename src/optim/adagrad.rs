//! Adagrad.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Adagrad`].
    pub struct AdagradHyper {
        /// Learning rate.
        lr,
        /// The learning rate of step t is `lr / (1 + (t - 1) lr_decay)`.
        lr_decay,
        /// Keeps the division finite.
        eps,
        /// 1: `sqrt(s + eps)` (Keras, optax), 0: `sqrt(s) + eps` (torch).
        eps_in_sqrt,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Duchi, Hazan & Singer 2011 (JMLR 12). state = [s], the sum of squared gradients:
/// `s = s + g g`, `p - lr_t (g / (sqrt(s) + eps))`.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad<T> {
    decay: Decay<T>,
    lr: T,
    eps: T,
    eps_in_sqrt: bool,
}

impl<T: Real> Rule<T, 1> for Adagrad<T> {
    type Hyper = AdagradHyper;
    const NAME: &'static str = "adagrad";
    const STATES: [&'static str; 1] = ["sum"];

    fn new(h: &AdagradHyper, step: u64, _scalars: &mut [f64]) -> Self {
        let lr = h.lr / (1.0 + (step - 1) as f64 * h.lr_decay);
        Adagrad {
            decay: Decay::new(lr, h.weight_decay, h.decoupled_weight_decay),
            lr: T::from_f64(lr),
            eps: T::from_f64(h.eps),
            eps_in_sqrt: h.eps_in_sqrt != 0.0,
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [s]: [T; 1]) -> (T, [T; 1]) {
        let (p, g) = self.decay.apply(p, g);
        let s = s + g * g;
        let root = if self.eps_in_sqrt { (s + self.eps).sqrt() } else { s.sqrt() + self.eps };
        (p - self.lr * (g / root), [s])
    }
}
