// Pictures of class indices, { width, height, data: Uint16Array }, and what is painted into them: no anti-aliasing
// anywhere. Points are [x, y] in pixels; pixel i covers [i, i + 1). An ink is { index } or { source }, another
// picture's data, of which the same pixels are taken. Boxes are [left, top, right, bottom), null where nothing is.

const KEPT_BYTES = 48e6;
const KEPT_STEPS = 200;
const KEPT_FOREIGN = 32;

function blank(width, height, index) {
  return { width, height, data: new Uint16Array(width * height).fill(index) };
}

function joined(a, b) {
  if (!a || !b) return a || b;
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
}

function clipped({ width, height }, left, top, right, bottom) {
  const box = [Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top))];
  box.push(Math.min(width, Math.ceil(right)), Math.min(height, Math.ceil(bottom)));
  return box[0] < box[2] && box[1] < box[3] ? box : null;
}

// From pixel `first` to before `last` of a row.
function paintRow({ width, data }, y, first, last, ink) {
  const from = y * width + first, to = y * width + last;
  if (ink.source) data.set(ink.source.subarray(from, to), from);
  else data.fill(ink.index, from, to);
}

// Every pixel whose centre is at most `radius` from the segment a to b.
function paintStroke(picture, a, b, radius, ink) {
  const box = clipped(picture, Math.min(a[0], b[0]) - radius, Math.min(a[1], b[1]) - radius, Math.max(a[0], b[0]) + radius, Math.max(a[1], b[1]) + radius);
  if (!box) return null;
  const dx = b[0] - a[0], dy = b[1] - a[1], length = dx * dx + dy * dy;
  const reach = radius * radius + 1e-9;
  for (let y = box[1]; y < box[3]; y++) {
    let first = -1, last = -1;
    for (let x = box[0]; x < box[2]; x++) {
      const px = x + 0.5 - a[0], py = y + 0.5 - a[1];
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const ex = px - along * dx, ey = py - along * dy;
      if (ex * ex + ey * ey > reach) continue;
      if (first < 0) first = x;
      last = x;
    }
    if (first >= 0) paintRow(picture, y, first, last + 1, ink);
  }
  return box;
}

// A quadratic curve from a to b, drawn towards c, as short strokes.
function paintCurve(picture, a, c, b, radius, ink) {
  const bend = Math.hypot(a[0] - 2 * c[0] + b[0], a[1] - 2 * c[1] + b[1]);
  const parts = Math.min(32, Math.ceil(Math.sqrt(bend * 2)) || 1);
  let box = null, from = a;
  for (let k = 1; k <= parts; k++) {
    const t = k / parts, s = 1 - t;
    const to = [0, 1].map((i) => s * s * a[i] + 2 * s * t * c[i] + t * t * b[i]);
    box = joined(box, paintStroke(picture, from, to, radius, ink));
    from = to;
  }
  return box;
}

// Every pixel that two opposite corners span, those under the corners included.
function paintRectangle(picture, a, b, ink) {
  const [left, right] = [a[0], b[0]].map(Math.floor).sort((p, q) => p - q);
  const [top, bottom] = [a[1], b[1]].map(Math.floor).sort((p, q) => p - q);
  const box = clipped(picture, left, top, right + 1, bottom + 1);
  if (box) for (let y = box[1]; y < box[3]; y++) paintRow(picture, y, box[0], box[2], ink);
  return box;
}

// Every pixel whose centre is inside a closed outline (even-odd).
function paintArea(picture, points, ink) {
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
  const box = clipped(picture, least(xs), least(ys), most(xs), most(ys));
  if (!box) return null;
  for (let y = box[1]; y < box[3]; y++) {
    const crossings = [];
    for (let k = 0; k < points.length; k++) {
      const [x0, y0] = points[k], [x1, y1] = points[(k + 1) % points.length];
      if (y0 <= y + 0.5 !== y1 <= y + 0.5) crossings.push(x0 + ((y + 0.5 - y0) / (y1 - y0)) * (x1 - x0));
    }
    crossings.sort((p, q) => p - q);
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      const first = Math.max(0, Math.ceil(crossings[k] - 0.5)), last = Math.min(picture.width, Math.ceil(crossings[k + 1] - 0.5));
      if (first < last) paintRow(picture, y, first, last, ink);
    }
  }
  return box;
}

// The region of one class, connected by sides, in which a pixel lies.
function paintRegion(picture, x, y, ink) {
  const { width, height, data } = picture;
  const old = data[y * width + x];
  if (old === ink.index) return null;
  let box = null;
  const seeds = [[x, y]];
  while (seeds.length) {
    const [sx, sy] = seeds.pop(), row = sy * width;
    if (data[row + sx] !== old) continue;
    let first = sx, last = sx + 1;
    while (first > 0 && data[row + first - 1] === old) first--;
    while (last < width && data[row + last] === old) last++;
    paintRow(picture, sy, first, last, ink);
    box = joined(box, [first, sy, last, sy + 1]);
    for (const ny of [sy - 1, sy + 1]) {
      if (ny < 0 || ny >= height) continue;
      for (let nx = first; nx < last; nx++) {
        const here = data[ny * width + nx] === old;
        if (here && (nx === first || data[ny * width + nx - 1] !== old)) seeds.push([nx, ny]);
      }
    }
  }
  return box;
}

// Undo and redo

function cut({ width, data }, [left, top, right, bottom]) {
  const pixels = new Uint16Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y++) pixels.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  return pixels;
}

function paste({ width, data }, [left, top, right, bottom], pixels) {
  for (let y = top; y < bottom; y++) data.set(pixels.subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * width + left);
}

// Steps that can be undone; each is { bytes, swap() }: swap exchanges its pixels with the shown ones.
class History {
  constructor() {
    this.done = [];
    this.undone = [];
  }

  add(step) {
    this.undone = [];
    this.done.push(step);
    let bytes = this.done.reduce((sum, one) => sum + one.bytes, 0);
    while (this.done.length > 1 && (bytes > KEPT_BYTES || this.done.length > KEPT_STEPS)) bytes -= this.done.shift().bytes;
  }

  move(from, to) {
    const step = from.pop();
    if (!step) return false;
    step.swap();
    to.push(step);
    return true;
  }

  undo() {
    return this.move(this.done, this.undone);
  }

  redo() {
    return this.move(this.undone, this.done);
  }
}

// Files. PNGs are encoded here: browsers that prevent fingerprinting alter the pixels that are read from a canvas.

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name, body) {
  const bytes = new Uint8Array(body.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, body.length);
  for (let k = 0; k < 4; k++) bytes[4 + k] = name.charCodeAt(k);
  bytes.set(body, 8);
  let crc = 0xffffffff;
  for (let k = 4; k < body.length + 8; k++) crc = CRC[(crc ^ bytes[k]) & 255] ^ (crc >>> 8);
  view.setUint32(body.length + 8, ~crc >>> 0);
  return bytes;
}

// An RGB PNG as a data URL. The pixels are copied before the first await.
async function toPng({ width, height, data }, colours) {
  const raw = new Uint8Array(height * (1 + 3 * width));
  for (let y = 0, at = 0, from = 0; y < height; y++) {
    at++; // the row's filter: none
    for (let x = 0; x < width; x++) {
      const colour = colours[data[from++]].colour;
      raw[at++] = colour[0];
      raw[at++] = colour[1];
      raw[at++] = colour[2];
    }
  }
  const stream = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  const pixels = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 2], 8); // bits a channel; RGB
  const parts = [[137, 80, 78, 71, 13, 10, 26, 10], chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", [])];
  const file = new Blob(parts.map((part) => Uint8Array.from(part)), { type: "image/png" });
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// The index of a colour in `colours`. A new one is appended as `foreign`, if that is allowed and there are few.
function indexOf(colours, rgb, foreign) {
  let best = 0, least = Infinity;
  colours.forEach(({ colour }, k) => {
    const far = Math.max(...colour.map((value, c) => Math.abs(value - rgb[c])));
    if (far < least) [best, least] = [k, far];
  });
  if (least <= 3 || !foreign || colours.filter((one) => one.foreign).length >= KEPT_FOREIGN) return best;
  return colours.push({ name: "no class", colour: rgb, foreign: true }) - 1;
}

// A picture at an address, as indices; colours of no class are appended to `colours`.
async function fromAddress(address, colours, foreign) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const picture = blank(canvas.width, canvas.height, 0), known = new Map();
  for (let k = 0, at = 0; k < picture.data.length; k++, at += 4) {
    const key = (bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2];
    let index = known.get(key);
    if (index === undefined) {
      index = indexOf(colours, [bytes[at], bytes[at + 1], bytes[at + 2]], foreign);
      known.set(key, index);
    }
    picture.data[k] = index;
  }
  return picture;
}
