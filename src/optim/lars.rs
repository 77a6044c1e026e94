//! LARS.

use super::{Decay, Passes, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Lars`].
    pub struct LarsHyper {
        /// Learning rate.
        lr,
        /// mu, the share of the old velocity that is kept.
        momentum,
        /// 1: look ahead along the new velocity.
        nesterov,
        /// eta, the scale of the ratio.
        trust_coefficient,
        /// Added to the ratio's denominator.
        eps,
        /// 0: arrays without weight decay get the ratio 1.
        always_adapt,
        /// 1: the denominator is `|g| + weight_decay |p|` (the paper), 0: `|g + weight_decay p|` (optax).
        separate_norms,
        /// 1: the learning rate is inside the velocity (the paper, optax), 0: outside.
        lr_in_momentum,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// You, Gitman & Ginsburg 2017 (arXiv 1708.03888). state = [buf]. With `d = g + weight_decay p` and
/// `r = trust_coefficient |p| / (|d| + eps)` (1 if either norm is 0):
/// `buf = momentum buf + (lr r) d`, `p - buf`, or with Nesterov `p - (momentum buf + (lr r) d)`.
#[derive(Clone, Copy, Debug)]
pub struct Lars<T> {
    decay: Decay<T>,
    momentum: T,
    /// What multiplies the gradient in the velocity.
    share: T,
    /// What multiplies the velocity in the step.
    step_size: T,
    nesterov: bool,
    hyper: LarsHyper,
}

impl<T: Real> Rule<T, 1> for Lars<T> {
    type Hyper = LarsHyper;
    const NAME: &'static str = "lars";
    const STATES: [&'static str; 1] = ["momentum_buffer"];
    const PASSES: Passes = Passes::MeasureThenBoth;

    fn new(h: &LarsHyper, _step: u64, _scalars: &mut [f64]) -> Self {
        Lars {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            momentum: T::from_f64(h.momentum),
            share: T::ONE,
            step_size: T::ONE,
            nesterov: h.nesterov != 0.0,
            hyper: *h,
        }
    }

    #[inline(always)]
    fn measure(&self, p: T, g: T, s: [T; 1]) -> ([T; 2], [T; 1]) {
        ([p, if self.hyper.separate_norms != 0.0 { g } else { self.decay.apply(p, g).1 }], s)
    }

    fn with_norms(self, [param_norm, gradient_norm]: [f64; 2]) -> Self {
        let h = &self.hyper;
        let adapts = h.always_adapt != 0.0 || h.weight_decay != 0.0;
        let ratio = if adapts && param_norm != 0.0 && gradient_norm != 0.0 {
            let decayed = if h.separate_norms != 0.0 { h.weight_decay * param_norm } else { 0.0 };
            h.trust_coefficient * param_norm / (gradient_norm + decayed + h.eps)
        } else {
            1.0
        };
        let (share, step_size) = if h.lr_in_momentum != 0.0 { (h.lr * ratio, 1.0) } else { (ratio, h.lr) };
        Lars { share: T::from_f64(share), step_size: T::from_f64(step_size), ..self }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [buf]: [T; 1]) -> (T, [T; 1]) {
        let (p, g) = self.decay.apply(p, g);
        let pull = self.share * g;
        let buf = self.momentum * buf + pull;
        (p - self.step_size * (if self.nesterov { self.momentum * buf + pull } else { buf }), [buf])
    }
}
