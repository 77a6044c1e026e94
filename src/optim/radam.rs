//! RAdam.

use super::{Decay, Moments, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`RAdam`].
    pub struct RAdamHyper {
        /// Learning rate.
        lr,
        /// Decay of the first moment.
        beta1,
        /// Decay of the second moment.
        beta2,
        /// Added to the uncorrected root, as torch does.
        eps,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Liu et al. 2020 (arXiv 1908.03265), in torch's form. state = [m, v], moments as in Adam, c1 = 1 - beta1^t,
/// c2 = 1 - beta2^t. With `R = 2 / (1 - beta2) - 1` and `r = R - 2 t beta2^t / c2`, the variance is known well enough when
/// r > 5: `p - s (m / (sqrt(v) + eps))`, `s = (lr / c1) sqrt(c2 (r - 4)(r - 2) R / ((R - 4)(R - 2) r))`.
/// Until then `p - (lr / c1) m`.
#[derive(Clone, Copy, Debug)]
pub struct RAdam<T> {
    decay: Decay<T>,
    moments: Moments<T>,
    eps: T,
    step_size: T,
    rectified: bool,
}

impl<T: Real> Rule<T, 2> for RAdam<T> {
    type Hyper = RAdamHyper;
    const NAME: &'static str = "radam";
    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];

    fn new(h: &RAdamHyper, step: u64, _scalars: &mut [f64]) -> Self {
        let t = step as f64;
        let (c1, power2) = (1.0 - libm::pow(h.beta1, t), libm::pow(h.beta2, t));
        let c2 = 1.0 - power2;
        let longest = 2.0 / (1.0 - h.beta2) - 1.0;
        let length = longest - 2.0 * t * power2 / c2;
        let rectified = length > 5.0;
        let rectification = if rectified {
            let share = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
            (share * c2).sqrt()
        } else {
            1.0
        };
        RAdam {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            moments: Moments::new(h.beta1, h.beta2),
            eps: T::from_f64(h.eps),
            step_size: T::from_f64(h.lr / c1 * rectification),
            rectified,
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let (p, g) = self.decay.apply(p, g);
        let [m, v] = self.moments.apply(g, [m, v]);
        let d = if self.rectified { m / (v.sqrt() + self.eps) } else { m };
        (p - self.step_size * d, [m, v])
    }
}
