"use strict";
// Text of a run enters the page through textContent alone, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; texts become text nodes. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  return fill(element, attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const NARROW = 480; // pixels below which a box beside the pointer would hide what it tells of; the line below tells it

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** A whole number of many digits, rounded to so many places: "1946939425648112" is 1.95×10¹⁵. */
function rounded(text, places) {
  const mantissa = Number(`${text[0]}.${text.slice(1, 16)}`).toFixed(places);
  const carried = mantissa.startsWith("10");
  return `${carried ? (1).toFixed(places) : mantissa}×${power(text.length - 1 + Number(carried))}`;
}

function power(exponent) {
  return "10" + String(exponent).replace(/./g, (digit) => SUPERSCRIPT[digit]);
}

/** x₁₂ from 12. */
function sub(number) {
  return String(number).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
}

/** Some digits of a number: 0.01235, 1.235×10⁻⁶, 12,345. */
function digits(value, count = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e6) {
    const text = String(Number(value.toPrecision(Math.max(count, Math.ceil(Math.log10(size + 1))))));
    return size >= 1e4 ? grouped(text) : text.replace("-", "−");
  }
  const [mantissa, exponent] = value.toExponential(count - 1).split("e");
  return `${String(Number(mantissa)).replace("-", "−")}×${power(Number(exponent))}`;
}

/** 12345678 as 12,345,678; of text, so that integers of any size stay exact. */
function grouped(value) {
  const [whole, part] = String(value).replace("-", "−").split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (part ? `.${part}` : "");
}

function percent(value) {
  return `${value.toFixed(2)} %`;
}

/** Round steps that divide a range into at most about `count` parts. */
function steps(low, high, count, whole) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].map((factor) => factor * unit).find((candidate) => candidate >= raw * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  // from 2^53 on, one more is the same number, so what is counted are the steps
  for (let at = 0; at <= last - first; at += 1) found.push(Number(((first + at) * step).toPrecision(12)));
  return found;
}

/**
 * Ticks of a logarithmic axis in a range of exponents, as exponents and texts: at most about `count` powers of ten.
 * Where fewer than two are in view, 1, 2 and 5 times these, and if need be numbers between.
 */
function decades(low, high, count) {
  const first = Math.ceil(low);
  const last = Math.floor(high);
  const found = [];
  if (last > first) {
    const step = Math.max(1, Math.ceil((last - first + 1) / count));
    for (let exponent = last; exponent >= first; exponent -= step) found.unshift([exponent, power(exponent)]);
    return found;
  }
  const inside = (value) => value > 0 && Math.log10(value) >= low && Math.log10(value) <= high;
  for (let exponent = first - 1; exponent <= last; exponent += 1) found.push(...[1, 2, 5].map((factor) => factor * 10 ** exponent).filter(inside));
  const values = found.length > 1 ? found : steps(10 ** low, 10 ** high, 4).filter(inside);
  return values.map((value) => [Math.log10(value), digits(value, 10)]);
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

const BINOMIALS = new Map();

/** The exact number of ways to choose k of n. */
function choose(n, k) {
  if (!BINOMIALS.has(n)) {
    const row = [1n];
    for (let at = 0; at < n; at += 1) row.push((row[at] * BigInt(n - at)) / BigInt(at + 1));
    BINOMIALS.set(n, row);
  }
  return BINOMIALS.get(n)[k];
}

/** Call when the element first has, and whenever it changes, its width. */
function onWidth(element, call) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(element.clientWidth);
    if (width > 0 && width !== last) {
      last = width;
      call(width);
    }
  }).observe(element);
}

/** A box of lines beside the pointer, inside a positioned host. */
class Tooltip {
  constructor(host) {
    this.host = host;
    this.box = make("div", { class: "tooltip", "aria-hidden": "true", hidden: true });
    host.append(this.box);
  }

  show(x, y, lines) {
    this.box.replaceChildren(...lines);
    this.box.hidden = false;
    const room = this.host.clientWidth;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = x + 14 + width <= room ? x + 14 : Math.max(0, x - 14 - width);
    this.box.style.left = `${Math.min(left, Math.max(0, room - width))}px`;
    this.box.style.top = `${Math.max(0, Math.min(y - height / 2, this.host.clientHeight - height))}px`;
  }

  hide() {
    this.box.hidden = true;
  }
}
