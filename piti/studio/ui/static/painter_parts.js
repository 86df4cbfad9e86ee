// The painter's controls: icons, tools, and groups with one choice.

const TOOLS = {
  brush: { name: "Brush", key: "b", icon: "M4 20c3 0 5-1 5-3.5A2.5 2.5 0 0 0 6.5 14C4.5 14 4 16 4 17.5 4 19 3 20 2.5 20zM9 15 20 4" },
  pen: { name: "Pen", key: "b", icon: "M4 20l1-5L16 4l4 4L9 19zM14 6l4 4" },
  eraser: { name: "Eraser", key: "e", icon: "M9 20l-5-5a2 2 0 0 1 0-3l8-8a2 2 0 0 1 3 0l5 5a2 2 0 0 1 0 3l-8 8zM8 8l8 8M9 20h12" },
  fill: { name: "Fill", key: "f", icon: "M10 4 3 12l7 7 8-8zM7 3l4 4M20 15c1.5 2 2 3 2 4a2 2 0 0 1-4 0c0-1 .5-2 2-4zM4 12h13" },
  area: { name: "Area", key: "a", icon: "M5 18C2 13 3 5 9 4s5 4 9 4 4 5 2 8-4 1-7 2-6 3-8 0z" },
  rectangle: { name: "Rectangle", key: "r", icon: "M4 6h16v12H4z" },
  line: { name: "Line", key: "l", icon: "M5 19 19 5" },
  pick: { name: "Pick", key: "p", icon: "M4 20l1-4 9-9 3 3-9 9zM13 5l6 6M15 4l2-1c2-1 5 2 4 4l-1 2" },
  restore: { name: "Put back", key: "o", icon: "M4 5v5h5M4 10a8 8 0 1 1 1 7" },
};
const ICONS = {
  undo: "M9 6 4 11l5 5M4 11h10a6 6 0 0 1 0 9h-3",
  redo: "M15 6l5 5-5 5M20 11H10a6 6 0 0 0 0 9h3",
  clear: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
};
const SHAPES = [["4:3", 512, 384], ["Square", 512, 512], ["3:4", 384, 512], ["16:9", 640, 360]];

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(svg.namespaceURI, "path"));
  svg.firstChild.setAttribute("d", path);
  return svg;
}

function word(tag, name, text) {
  return Object.assign(document.createElement(tag), { className: name, textContent: text });
}

// One of `choices` is chosen: by a click, or by the arrow keys, Home and End once the group has the focus.
// Each choice is { value, parts: nodes, label, title }. Returns { choose(value), show(test of a value) }.
function radioGroup(group, choices, onchoose) {
  const buttons = choices.map(({ value, parts, label, title }) => {
    const button = word("button", "choice", "");
    button.type = "button";
    button.setAttribute("role", "radio");
    if (label) button.setAttribute("aria-label", label);
    if (title) button.title = title;
    button.append(...parts);
    button.onclick = () => onchoose(value);
    return button;
  });
  const seen = () => buttons.filter((button) => !button.hidden);
  // The one that the Tab key reaches: the chosen one, or the first if that is hidden.
  const settle = () => {
    const shown = seen();
    const stop = shown.find((button) => button.getAttribute("aria-checked") === "true") || shown[0];
    for (const button of buttons) button.tabIndex = button === stop ? 0 : -1;
  };
  group.onkeydown = (event) => {
    const shown = seen(), at = shown.indexOf(document.activeElement);
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    let to = by && (at + by + shown.length) % shown.length;
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = shown.length - 1;
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    shown[to].focus();
    shown[to].click();
  };
  group.replaceChildren(...buttons);
  return {
    choose(value) {
      choices.forEach((choice, k) => buttons[k].setAttribute("aria-checked", String(choice.value === value)));
      settle();
      const chosen = buttons[choices.findIndex((choice) => choice.value === value)];
      if (chosen) keepInView(group, chosen);
    },
    show(test) {
      choices.forEach((choice, k) => (buttons[k].hidden = !test(choice.value)));
      settle();
      return seen().length;
    },
  };
}

// Scrolls the group alone, never the page.
function keepInView(group, node) {
  const outer = group.getBoundingClientRect(), inner = node.getBoundingClientRect();
  if (inner.top < outer.top) group.scrollTop -= outer.top - inner.top + 4;
  else if (inner.bottom > outer.bottom) group.scrollTop += inner.bottom - outer.bottom + 4;
}

function toolChoices(names) {
  return names.map((name) => {
    const { name: label, key, icon: path } = TOOLS[name];
    return { value: name, parts: [icon(path), word("span", "name", label)], label, title: label + " (" + key.toUpperCase() + ")" };
  });
}

function classChoices(colours) {
  return colours.flatMap(({ name, colour, foreign }, index) => {
    if (foreign) return [];
    const swatch = word("i", "swatch", "");
    swatch.style.background = "rgb(" + colour.join(" ") + ")";
    const parts = [swatch, word("span", "name", name)];
    if (index < 10) {
      const digit = word("kbd", "digit", String((index + 1) % 10));
      digit.setAttribute("aria-hidden", "true");
      parts.push(digit);
    }
    return [{ value: index, parts, label: name, title: name }];
  });
}
