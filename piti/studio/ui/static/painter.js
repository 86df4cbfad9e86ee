// A tool to paint masks and draw sketches: its state, what it shows, and its exchange with the server. One script
// with painter_pixels.js and painter_parts.js before it, and painter_hands.js after. `element`, `props`, `trigger` and
// `watch` are Gradio's. props.kind: "mask" or "sketch"; props.colours: [{ name, colour }]; BUILT: both as they were at first.
// props.value: { picture, underlay, before, load } from the server, { picture, load } of our own.
const part = (name) => element.querySelector("." + name);
const surface = part("surface");
const LARGEST = 100;
const editable = (globalThis.pitiEditable ??= new Map()); // by `load`: state that a painter needs when it is shown again

let colours = []; // the classes, then colours of the loaded picture that are no class's
let picture = blank(1, 1, 0);
let passed; // the `load` of a picture that a restored drawing replaced
let original = null; // the loaded indices, if there is a photograph beneath
let load = null;
let before = new Uint16Array(1); // the indices at the start of a gesture
let steps = new History();
let tool = "brush", chosen = 0, ground = 0;
let tools = null, palette = null, built = "", sent = "";
let gesture = null, cursor = null, exporting = false, again = false, latest = 0;
let untouched = true; // nothing was painted or loaded yet

const sketching = () => (props.kind || BUILT.kind) === "sketch";
const toolNames = () => (sketching() ? ["pen", "eraser", "line"] : ["brush", "fill", "area", "rectangle", "line", "pick", ...(original ? ["restore"] : [])]);
const say = (words) => (part("said").textContent = words);
const nameAt = ([x, y]) => colours[picture.data[Math.floor(y) * picture.width + Math.floor(x)]];
const size = () => Number(part("size").querySelector("input").value);

// Showing

function draw(box) {
  if (!box) return;
  const [left, top, right, bottom] = box;
  const table = Uint32Array.from(colours, ({ colour: [r, g, b] }) => (255 << 24) | (b << 16) | (g << 8) | r);
  const image = new ImageData(right - left, bottom - top), out = new Uint32Array(image.data.buffer);
  cut(picture, box).forEach((index, k) => (out[k] = table[index]));
  part("picture").getContext("2d").putImageData(image, left, top);
  if (original) drawChanges(clipped(picture, left - 1, top - 1, right + 1, bottom + 1));
}

// Hatches what differs from the loaded picture, and outlines it.
function drawChanges([left, top, right, bottom]) {
  const { width, height, data } = picture;
  const image = new ImageData(right - left, bottom - top), out = new Uint32Array(image.data.buffer);
  const kept = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[y * width + x] === original[y * width + x];
  const pitch = Math.max(6, Math.round(width / 48));
  for (let y = top, k = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, k++) {
      if (data[y * width + x] === original[y * width + x]) continue;
      const edge = kept(x - 1, y) || kept(x + 1, y) || kept(x, y - 1) || kept(x, y + 1);
      if (edge) out[k] = ((x + y) >> 2) & 1 ? 0xff000000 : 0xffffffff;
      else if ((x + y) % pitch === 0) out[k] = 0xb0ffffff;
      else if ((x + y) % pitch === 1) out[k] = 0x60000000;
    }
  }
  part("changes").getContext("2d").putImageData(image, left, top);
}

function drawAll() {
  const { width, height } = picture;
  for (const name of ["picture", "changes"]) Object.assign(part(name), { width, height });
  part("changes").hidden = !original;
  before = new Uint16Array(width * height);
  element.style.setProperty("--shape", width / height);
  draw([0, 0, width, height]);
  showPlace(null);
  showSteps();
}

function showSteps() {
  part("undo").disabled = !steps.done.length;
  part("redo").disabled = !steps.undone.length;
}

// The brush's outline and the name of the class beneath it; null: nothing is pointed at.
function showPlace(point) {
  const inside = point && point[0] >= 0 && point[1] >= 0 && point[0] < picture.width && point[1] < picture.height;
  const ring = part("ring"), scale = surface.clientWidth / picture.width;
  ring.hidden = !inside;
  const under = inside && !sketching() && nameAt(point);
  part("what").textContent = under ? under.name : picture.width + " × " + picture.height + " pixels";
  part("below").querySelector(".swatch").style.background = under ? "rgb(" + under.colour.join(" ") + ")" : "none";
  if (!inside) return;
  const wide = ["fill", "pick", "area", "rectangle"].includes(tool) ? 0 : size() * scale;
  ring.classList.toggle("small", wide < 5);
  ring.style.cssText = `left: ${point[0] * scale}px; top: ${point[1] * scale}px; --wide: ${Math.max(wide, 9)}px`;
}

// Choosing

function chooseTool(name) {
  tool = name;
  tools.choose(name);
}

function chooseClass(index) {
  if (colours[index].foreign) return say("This part belongs to no class");
  chosen = index;
  if (palette) palette.choose(index);
  part("clear").title = sketching() ? "Clear the page" : "Clear: fill everything with " + colours[index].name;
  if (["pick", "restore"].includes(tool)) chooseTool("brush");
}

function chooseSize(value) {
  const slider = part("size").querySelector("input");
  slider.value = Math.min(LARGEST, Math.max(1, Math.round(value)));
  part("size").querySelector("output").textContent = slider.value;
}

function chooseVeil() {
  const slider = part("veil").querySelector("input");
  part("veil").querySelector("output").textContent = slider.value + " %";
  part("picture").style.opacity = original ? 1 - slider.value / 100 : 1;
}

function search() {
  const words = part("search").value.toLowerCase().split(/\s+/);
  const fits = (index) => words.every((one) => colours[index].name.toLowerCase().includes(one));
  part("none").hidden = palette.show(fits) > 0;
}

// Painting: a gesture begins, goes on, and ends, by a pointer or by keys.

function inkOf(name) {
  if (name === "restore") return { source: original };
  return { index: name === "eraser" ? ground : chosen };
}

function begin(point, name) {
  if (name === "pick") return chooseClass(picture.data[Math.floor(point[1]) * picture.width + Math.floor(point[0])]);
  before.set(picture.data);
  gesture = { name, ink: inkOf(name), points: [point], middle: point, box: null };
  if (name === "fill") {
    gesture.box = paintRegion(picture, Math.floor(point[0]), Math.floor(point[1]), gesture.ink);
    draw(gesture.box);
    return end();
  }
  if (!["area", "rectangle"].includes(name)) paint(paintStroke(picture, point, point, size() / 2, gesture.ink));
}

function paint(box) {
  gesture.box = joined(gesture.box, box);
  draw(box);
}

// Removes the preview of a shape, before the next one.
function revert() {
  const { box } = gesture;
  if (box) paste(picture, box, cut({ width: picture.width, data: before }, box));
  gesture.box = null;
  return box;
}

function go(point) {
  const { name, ink, points, middle } = gesture;
  const last = points.at(-1);
  if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 0.3) return;
  points.push(point);
  if (["area", "rectangle", "line"].includes(name)) {
    const old = revert();
    if (name === "line") gesture.box = paintStroke(picture, points[0], point, size() / 2, ink);
    if (name === "rectangle") gesture.box = paintRectangle(picture, points[0], point, ink);
    if (name === "area") gesture.box = paintArea(picture, points, ink);
    return draw(joined(old, gesture.box));
  }
  gesture.middle = [(last[0] + point[0]) / 2, (last[1] + point[1]) / 2];
  paint(paintCurve(picture, middle, last, gesture.middle, size() / 2, ink));
}

function end() {
  const { name, ink, points, middle } = gesture;
  if (points.length > 1 && ["brush", "pen", "eraser", "restore"].includes(name)) paint(paintStroke(picture, middle, points.at(-1), size() / 2, ink));
  const { box } = gesture;
  gesture = null;
  if (!box) return;
  const old = cut({ width: picture.width, data: before }, box);
  if (cut(picture, box).some((index, k) => index !== old[k])) keep(patch(box, old));
}

function abort() {
  if (!gesture) return;
  draw(revert());
  gesture = null;
}

function patch(box, old) {
  const swap = () => {
    const now = cut(picture, box);
    paste(picture, box, old);
    old = now;
    draw(box);
  };
  return { bytes: old.byteLength, swap };
}

function keep(step) {
  untouched = false;
  steps.add(step);
  showSteps();
  send();
}

function step(way) {
  abort();
  if (steps[way]()) {
    say(way === "undo" ? "Undone" : "Done again");
    send();
  }
  showSteps();
}

function clear() {
  abort();
  const box = [0, 0, picture.width, picture.height], old = picture.data.slice();
  picture.data.fill(sketching() ? ground : chosen);
  draw(box);
  keep(patch(box, old));
  say("Cleared");
}

// Shows another picture; the step returned brings the old one back.
function exchanged(other) {
  const swap = () => {
    const now = { colours, picture, original, load };
    ({ colours, picture, original, load } = other);
    other = now;
    showLoaded();
  };
  swap();
  return { bytes: other.picture.data.byteLength, swap };
}

function begun(width, height) {
  abort();
  keep(exchanged({ colours, picture: blank(width, height, ground), original: null, load: null }));
}

// Exchange with the server

// Whether a preview is wanted after every stroke, and no photographs are on their way.
function live() {
  const tab = element.closest("[role=tabpanel]");
  const state = tab?.querySelector(".gallery")?.closest("[data-state]")?.dataset.state;
  return tab?.querySelector(".live input")?.checked && state !== "waiting" && state !== "running";
}

// Sends the picture. One file is encoded at a time; later changes follow directly.
async function send() {
  again = true;
  if (exporting) return;
  exporting = true;
  try {
    while (again) {
      again = false;
      const number = latest;
      const file = await toPng(picture, colours);
      if (number !== latest) continue;
      sent = file;
      props.value = { picture: file, load };
      if (live()) setTimeout(() => trigger("input"));
      if (!original) store(file);
    }
  } finally {
    exporting = false;
  }
}

// A drawing survives a reload of the page, in this tab only.
const NAMED = ":not([id='']):not([id^='html-'])"; // html-…: Gradio's own, another at every load
const KEY = "piti-painting-" + (element.closest("[id]" + NAMED)?.id ?? "");

function store(file) {
  try {
    sessionStorage.setItem(KEY, file);
  } catch {} // storage is full or not allowed: then it does not
}

function restored() {
  const seen = (window.pitiPainters ??= new Set());
  if (seen.has(KEY)) return null;
  seen.add(KEY);
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

async function take({ picture: address, underlay, before, load: name }) {
  const number = ++latest;
  abort();
  const known = editable.get(name);
  const table = colours.filter((one) => !one.foreign);
  const loaded = await fromAddress(address, table, !sketching());
  if (number !== latest) return;
  const base = known || (underlay && { underlay, address: before || address });
  const first = base && base.address !== address ? await fromAddress(base.address, table, !sketching()) : loaded;
  if (number !== latest) return;
  abort();
  if (base) remember(name, base);
  const alone = untouched || original || base; // a photograph's drawing and another are not exchanged: the server knows it
  const step = exchanged({ colours: table, picture: loaded, original: base ? first.data.slice() : null, load: name });
  if (alone) steps = new History();
  else steps.add(step);
  untouched = false;
  showSteps();
  send();
}

function remember(name, base) {
  editable.delete(name);
  editable.set(name, base);
  if (editable.size > 8) editable.delete(editable.keys().next().value);
}

function showLoaded() {
  const below = original && editable.get(load);
  part("underlay").hidden = part("veil").hidden = !below;
  part("new").hidden = !!original; // a photograph fixes the size
  if (below) part("underlay").src = below.underlay;
  else part("underlay").removeAttribute("src");
  build();
  chooseVeil();
  drawAll();
}

// The controls of this kind and these classes
function build() {
  const names = toolNames();
  tools = radioGroup(part("tools"), toolChoices(names), chooseTool);
  chooseTool(names.includes(tool) ? tool : names[0]);
}

function setUp() {
  const wanted = JSON.stringify([sketching(), props.colours || BUILT.colours]);
  part("painter").setAttribute("aria-label", props.label || "Painter");
  if (wanted === built) return false;
  built = wanted;
  abort();
  colours = (props.colours || BUILT.colours).map(({ name, colour }) => ({ name, colour }));
  ground = Math.max(0, colours.findIndex(({ name }) => /^(sky|background)\b/i.test(name)));
  chosen = colours.length > 1 && ground === 0 ? 1 : 0;
  part("palette").hidden = sketching();
  palette = radioGroup(part("classes"), sketching() ? [] : classChoices(colours), chooseClass);
  part("search").hidden = colours.length <= 16;
  part("search").value = "";
  part("none").hidden = true;
  chooseSize(sketching() ? 4 : 28);
  [original, load, steps, untouched] = [null, null, new History(), true];
  picture = blank(SHAPES[0][1], SHAPES[0][2], ground);
  showLoaded();
  chooseClass(chosen);
  return true;
}

function arrived() {
  const anew = setUp();
  const { value } = props, kept = restored();
  if (kept) {
    passed = value?.load;
    take({ picture: kept, load: null }).catch(() => sessionStorage.removeItem(KEY));
    return;
  }
  if (value && value.picture && value.load && value.load === passed) return; // a restored drawing replaces it
  if (value && value.picture && (value.picture !== sent || value.underlay)) {
    take(value).catch(() => say("The picture cannot be shown"));
  } else if (anew) {
    latest++;
    if (value && value.picture === sent) props.value = "";
  } else if (!value && sent) {
    latest++;
    sent = built = "";
    setUp();
  }
}
