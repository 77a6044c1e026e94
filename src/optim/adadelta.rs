//! Adadelta.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Adadelta`].
    pub struct AdadeltaHyper {
        /// Scale of the step.
        lr,
        /// Decay of the averages.
        rho,
        /// Inside both roots.
        eps,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Zeiler 2012 (arXiv 1212.5701). state = [v, a], averages of squared gradients and squared steps:
/// `v = rho v + (1 - rho) (g g)`, `d = (sqrt(a + eps) / sqrt(v + eps)) g`, `a = rho a + (1 - rho) (d d)`, `p - lr d`.
#[derive(Clone, Copy, Debug)]
pub struct Adadelta<T> {
    decay: Decay<T>,
    lr: T,
    rho: T,
    rest: T,
    eps: T,
}

impl<T: Real> Rule<T, 2> for Adadelta<T> {
    type Hyper = AdadeltaHyper;
    const NAME: &'static str = "adadelta";
    const STATES: [&'static str; 2] = ["square_avg", "acc_delta"];

    fn new(h: &AdadeltaHyper, _step: u64, _scalars: &mut [f64]) -> Self {
        Adadelta {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            lr: T::from_f64(h.lr),
            rho: T::from_f64(h.rho),
            rest: T::from_f64(1.0 - h.rho),
            eps: T::from_f64(h.eps),
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [v, a]: [T; 2]) -> (T, [T; 2]) {
        let (p, g) = self.decay.apply(p, g);
        let v = self.rho * v + self.rest * (g * g);
        let d = (a + self.eps).sqrt() / (v + self.eps).sqrt() * g;
        let a = self.rho * a + self.rest * (d * d);
        (p - self.lr * d, [v, a])
    }
}
