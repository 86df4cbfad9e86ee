// The results of a job: progress, previews, then the pictures with their conditions.
// `element`, `props`, `trigger` and `watch` are Gradio's. props.value: JSON, see gallery.py.
const part = (name) => element.querySelector("." + name);

function made(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function figure(source, caption, name, onview) {
  const image = made("img", { src: source, alt: name, loading: "eager", draggable: "false" });
  const shown = onview ? made("button", { type: "button", class: "view", "aria-label": "Look at " + name, onclick: onview }, image) : image;
  return made("figure", {}, shown, made("figcaption", {}, ...caption));
}

function finished(picture, place, all) {
  const name = "photograph " + (place + 1);
  const caption = [made("span", { class: "number" }, String(place + 1))];
  caption.push(made("a", { class: "download", href: picture.address + "?download=1", download: picture.file, "aria-label": "Download " + name }, "PNG"));
  if (picture.editable) {
    caption.push(made("button", { type: "button", class: "edit", "aria-label": "Edit " + name, onclick: () => edit(picture) }, "Edit"));
  }
  return figure(picture.address, caption, name, () => view(all, place));
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function edit(picture) {
  trigger("select", { id: picture.id });
  const painter = element.closest("[role=tabpanel]")?.querySelector(".painter");
  painter?.scrollIntoView({ behavior: still() ? "auto" : "smooth", block: "start" });
}

// On a small screen the pictures are below the button that asks for them.
function come() {
  const { top } = element.getBoundingClientRect();
  if (top > innerHeight * 0.8) element.scrollIntoView({ behavior: still() ? "auto" : "smooth", block: "start" });
}

// pictures: finished ones, as gallery.py has them; also of earlier results, which have no figure of their own.
function view(pictures, place) {
  const dialog = part("viewer");
  const show = (k) => {
    place = (k + pictures.length) % pictures.length;
    dialog.querySelector("img").src = pictures[place].address;
    dialog.querySelector("img").alt = "Photograph " + (place + 1);
    part("which").textContent = place + 1 + " of " + pictures.length;
    part("save").href = pictures[place].address + "?download=1";
    part("save").download = pictures[place].file;
    part("change").hidden = !pictures[place].editable;
  };
  part("change").onclick = () => {
    dialog.close();
    edit(pictures[place]);
  };
  part("previous").onclick = () => show(place - 1);
  part("next").onclick = () => show(place + 1);
  part("close").onclick = () => dialog.close();
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  };
  part("previous").hidden = part("next").hidden = pictures.length < 2;
  show(place);
  dialog.showModal();
}

const KEPT = 60; // pictures of earlier results
let shown = {}, last = {}; // what is shown; the last finished pictures, which stay beside a problem
let earlier = []; // finished pictures of results before the last, the newest first
let listed = ""; // the addresses of those that are shown as small pictures

// "settled" only clears an earlier problem: pictures stay.
function arrived() {
  const value = JSON.parse(props.value || "{}");
  if (value.state === "settled" && shown.state !== "failed") return;
  if (value.state === "done") {
    const now = new Set(value.pictures.map((picture) => picture.address));
    earlier = [...(last.pictures || []), ...earlier].filter((picture) => !now.has(picture.address)).slice(0, KEPT);
    last = value;
  }
  if (value.state === "settled") shown = last.pictures ? last : { ...value, state: "empty" };
  else shown = value.state === "failed" ? { ...last, ...value } : value;
  render(shown);
}

function render(value) {
  const running = value.state === "waiting" || value.state === "running";
  if (running && element.dataset.state !== "running" && element.dataset.state !== "waiting") come();
  element.dataset.state = value.state;
  part("status").textContent = value.problem ? "" : value.status || "";
  part("problem").textContent = value.problem || "";
  const bar = part("progress");
  bar.hidden = !running;
  if (value.total) bar.max = value.total;
  bar.value = value.done || 0;
  part("conditions").replaceChildren(...(value.conditions || []).map((c) => figure(c.source, [c.name], c.name)));
  const pictures = value.pictures || [];
  const cells = pictures.map((picture, k) => finished(picture, k, pictures));
  cells.push(...(value.previews || []).map((source, k) => figure(source, [made("span", { class: "number" }, String(k + 1))], "photograph " + (k + 1) + ", not finished")));
  const missing = running ? (value.expected || 0) - (value.previews || []).length : 0;
  for (let k = 0; k < missing; k++) cells.push(made("figure", { class: "pending", style: "--shape: " + (value.shape || 1) }, made("div", {}), made("figcaption", {}, "…")));
  part("pictures").replaceChildren(...cells);
  part("notes").replaceChildren(...(value.notes || []).map((note) => made("li", {}, note)));
  before(pictures.length ? earlier : [...(last.pictures || []), ...earlier]);
}

// Small pictures of earlier results: making others, or a live preview, loses none. One that the studio keeps no longer
// goes.
function before(pictures) {
  const addresses = pictures.map((picture) => picture.address).join(" ");
  if (addresses === listed) return; // a job renders at every step
  listed = addresses;
  part("earlier").hidden = !pictures.length;
  part("count").textContent = pictures.length;
  const gone = (picture) => {
    earlier = earlier.filter((one) => one !== picture);
    render(shown);
  };
  part("thumbnails").replaceChildren(
    ...pictures.map((picture, k) => {
      const name = "earlier photograph " + (k + 1);
      const image = made("img", { src: picture.address, alt: name, draggable: "false", onerror: () => earlier.includes(picture) && gone(picture) });
      return made("button", { type: "button", class: "view", "aria-label": "Look at " + name, onclick: () => view(pictures, k) }, image);
    }),
  );
}

watch("value", arrived);
arrived();
