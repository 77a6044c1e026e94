//! Lion.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Lion`].
    pub struct LionHyper {
        /// Learning rate.
        lr,
        /// The old moment's share in the direction.
        beta1,
        /// The old moment's share in the new one.
        beta2,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Chen et al. 2023 (arXiv 2302.06675). state = [m]:
/// `p - lr sign(beta1 m + (1 - beta1) g)`, `m = beta2 m + (1 - beta2) g`; sign(0) = 0.
#[derive(Clone, Copy, Debug)]
pub struct Lion<T> {
    decay: Decay<T>,
    lr: T,
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
}

impl<T: Real> Rule<T, 1> for Lion<T> {
    type Hyper = LionHyper;
    const NAME: &'static str = "lion";
    const STATES: [&'static str; 1] = ["exp_avg"];

    fn new(h: &LionHyper, _step: u64, _scalars: &mut [f64]) -> Self {
        Lion {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            lr: T::from_f64(h.lr),
            beta1: T::from_f64(h.beta1),
            rest1: T::from_f64(1.0 - h.beta1),
            beta2: T::from_f64(h.beta2),
            rest2: T::from_f64(1.0 - h.beta2),
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m]: [T; 1]) -> (T, [T; 1]) {
        let (p, g) = self.decay.apply(p, g);
        let direction = (self.beta1 * m + self.rest1 * g).sign();
        (p - self.lr * direction, [self.beta2 * m + self.rest2 * g])
    }
}
