//! NAdam.

use super::{Decay, Moments, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`NAdam`].
    pub struct NAdamHyper {
        /// Learning rate.
        lr,
        /// Decay of the first moment.
        beta1,
        /// Decay of the second moment.
        beta2,
        /// Keeps the division finite.
        eps,
        /// psi: how fast mu comes up to beta1.
        momentum_decay,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Dozat 2016 (ICLR workshop), in torch's form. state = [m, v], moments as in Adam; scalar state `mu_product`, the product
/// of all mu so far. With `mu_t = beta1 (1 - 0.96^(t psi) / 2)` and c2 = 1 - beta2^t:
/// `p - (a g + b m) / (sqrt(v) (1 / sqrt(c2)) + eps)`, where `a = lr (1 - mu_t) / (1 - mu_product)` and
/// `b = lr mu_(t+1) / (1 - mu_product mu_(t+1))`.
#[derive(Clone, Copy, Debug)]
pub struct NAdam<T> {
    decay: Decay<T>,
    moments: Moments<T>,
    of_gradient: T,
    of_moment: T,
    correction: T,
    eps: T,
}

impl<T: Real> Rule<T, 2> for NAdam<T> {
    type Hyper = NAdamHyper;
    const NAME: &'static str = "nadam";
    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const SCALARS: &'static [(&'static str, f64)] = &[("mu_product", 1.0)];

    fn new(h: &NAdamHyper, step: u64, scalars: &mut [f64]) -> Self {
        let t = step as f64;
        let mu = |t: f64| h.beta1 * (1.0 - 0.5 * libm::pow(0.96, t * h.momentum_decay));
        let (mu_now, mu_next) = (mu(t), mu(t + 1.0));
        let mu_product = scalars[0] * mu_now;
        scalars[0] = mu_product;
        let c2 = 1.0 - libm::pow(h.beta2, t);
        NAdam {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            moments: Moments::new(h.beta1, h.beta2),
            of_gradient: T::from_f64(h.lr * (1.0 - mu_now) / (1.0 - mu_product)),
            of_moment: T::from_f64(h.lr * mu_next / (1.0 - mu_product * mu_next)),
            correction: T::from_f64(1.0 / c2.sqrt()),
            eps: T::from_f64(h.eps),
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let (p, g) = self.decay.apply(p, g);
        let [m, v] = self.moments.apply(g, [m, v]);
        (p - (self.of_gradient * g + self.of_moment * m) / (v.sqrt() * self.correction + self.eps), [m, v])
    }
}
