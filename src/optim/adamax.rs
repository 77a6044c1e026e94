//! Adamax.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Adamax`].
    pub struct AdamaxHyper {
        /// Learning rate.
        lr,
        /// Decay of the first moment.
        beta1,
        /// Decay of the infinity norm.
        beta2,
        /// Added to |g|.
        eps,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Kingma & Ba 2015 (arXiv 1412.6980, section 7.1), with torch's eps. state = [m, u], first moment and infinity norm:
/// `m = beta1 m + (1 - beta1) g`, `u = maximum(beta2 u, |g| + eps)`, `p - (lr / (1 - beta1^t)) (m / u)`.
#[derive(Clone, Copy, Debug)]
pub struct Adamax<T> {
    decay: Decay<T>,
    beta1: T,
    rest1: T,
    beta2: T,
    eps: T,
    step_size: T,
}

impl<T: Real> Rule<T, 2> for Adamax<T> {
    type Hyper = AdamaxHyper;
    const NAME: &'static str = "adamax";
    const STATES: [&'static str; 2] = ["exp_avg", "exp_inf"];

    fn new(h: &AdamaxHyper, step: u64, _scalars: &mut [f64]) -> Self {
        Adamax {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            beta1: T::from_f64(h.beta1),
            rest1: T::from_f64(1.0 - h.beta1),
            beta2: T::from_f64(h.beta2),
            eps: T::from_f64(h.eps),
            step_size: T::from_f64(h.lr / (1.0 - libm::pow(h.beta1, step as f64))),
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m, u]: [T; 2]) -> (T, [T; 2]) {
        let (p, g) = self.decay.apply(p, g);
        let m = self.beta1 * m + self.rest1 * g;
        let u = (self.beta2 * u).maximum(g.abs() + self.eps);
        (p - self.step_size * (m / u), [m, u])
    }
}
