//! Stochastic gradient descent, with momentum in torch's form or the textbook's.

use super::{Decay, Rule, hyper};
use crate::float::Real;

hyper! {
    /// Of [`Sgd`].
    pub struct SgdHyper {
        /// Learning rate.
        lr,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// `p - lr * g`. Robbins & Monro 1951.
#[derive(Clone, Copy, Debug)]
pub struct Sgd<T> {
    decay: Decay<T>,
    lr: T,
}

impl<T: Real> Rule<T, 0> for Sgd<T> {
    type Hyper = SgdHyper;
    const NAME: &'static str = "sgd";
    const STATES: [&'static str; 0] = [];

    fn new(h: &SgdHyper, _step: u64, _scalars: &mut [f64]) -> Self {
        Sgd { decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay), lr: T::from_f64(h.lr) }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, []: [T; 0]) -> (T, [T; 0]) {
        let (p, g) = self.decay.apply(p, g);
        (p - self.lr * g, [])
    }
}

hyper! {
    /// Of [`Momentum`].
    pub struct MomentumHyper {
        /// Learning rate.
        lr,
        /// mu, the share of the old velocity that is kept.
        momentum,
        /// The share of the gradient that is left out, except at the first step.
        dampening,
        /// 1: look ahead along the new velocity.
        nesterov,
        /// 1: the learning rate is inside the velocity (textbook, Keras), 0: outside (torch).
        lr_in_momentum,
        /// Weight decay.
        weight_decay,
        /// 1: decoupled, 0: coupled (L2).
        decoupled_weight_decay,
    }
}

/// Momentum, Polyak 1964; Nesterov's form as in Sutskever et al. 2013. With damped gradient `d = (1 - dampening) g`:
///
/// - torch: `buf = mu buf + d` (`buf = g` at the first step), `p - lr buf`, or with Nesterov `p - lr (g + mu buf)`;
/// - textbook (`lr_in_momentum`): `v = mu v - lr d`, `p + v`, or with Nesterov `p + (mu v - lr d)`.
#[derive(Clone, Copy, Debug)]
pub struct Momentum<T> {
    decay: Decay<T>,
    lr: T,
    momentum: T,
    /// What multiplies the gradient in the velocity.
    share: T,
    first: bool,
    nesterov: bool,
    lr_in_momentum: bool,
}

impl<T: Real> Rule<T, 1> for Momentum<T> {
    type Hyper = MomentumHyper;
    const NAME: &'static str = "momentum";
    const STATES: [&'static str; 1] = ["momentum_buffer"];

    fn new(h: &MomentumHyper, step: u64, _scalars: &mut [f64]) -> Self {
        let first = step == 1;
        let undamped = if first { 1.0 } else { 1.0 - h.dampening };
        Momentum {
            decay: Decay::new(h.lr, h.weight_decay, h.decoupled_weight_decay),
            lr: T::from_f64(h.lr),
            momentum: T::from_f64(h.momentum),
            share: T::from_f64(if h.lr_in_momentum != 0.0 { h.lr * undamped } else { undamped }),
            first,
            nesterov: h.nesterov != 0.0,
            lr_in_momentum: h.lr_in_momentum != 0.0,
        }
    }

    #[inline(always)]
    fn update(&self, p: T, g: T, [buf]: [T; 1]) -> (T, [T; 1]) {
        let (p, g) = self.decay.apply(p, g);
        let pull = self.share * g;
        if self.lr_in_momentum {
            let v = self.momentum * buf - pull;
            (if self.nesterov { p + (self.momentum * v - pull) } else { p + v }, [v])
        } else {
            let buf = if self.first { g } else { self.momentum * buf + pull };
            (p - self.lr * (if self.nesterov { g + self.momentum * buf } else { buf }), [buf])
        }
    }
}

hyper! {
    /// Of [`Lookahead`].
    pub struct LookaheadHyper {
        /// Learning rate.
        lr,
        /// mu of the momentum.
        momentum,
        /// As for [`Momentum`].
        lr_in_momentum,
    }
}

/// Not an optimiser: the point at which Nesterov 1983 takes the gradient, `w + mu v`, from the weights `w` (in the place of
/// the gradient) and the velocity; `w - (lr mu) buf` when the learning rate is outside the velocity.
#[derive(Clone, Copy, Debug)]
pub struct Lookahead<T> {
    factor: T,
}

impl<T: Real> Rule<T, 1> for Lookahead<T> {
    type Hyper = LookaheadHyper;
    const NAME: &'static str = "lookahead";
    const STATES: [&'static str; 1] = ["momentum_buffer"];

    fn new(h: &LookaheadHyper, _step: u64, _scalars: &mut [f64]) -> Self {
        let factor = if h.lr_in_momentum != 0.0 { h.momentum } else { -(h.lr * h.momentum) };
        Lookahead { factor: T::from_f64(factor) }
    }

    #[inline(always)]
    fn update(&self, _p: T, w: T, [v]: [T; 1]) -> (T, [T; 1]) {
        (w + self.factor * v, [v])
    }
}
